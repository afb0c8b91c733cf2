"""Training of several runs of one MLP, which differ only in seed and numbers, side by side as one batched program."""
