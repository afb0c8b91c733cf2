"""Training of several runs of one MLP side by side as one batched program."""
