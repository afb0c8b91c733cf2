"""Runs of one MLP that differ in numbers only, trained side by side as one batched program."""
