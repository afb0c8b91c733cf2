"""The methods as their papers write them: naive loops in plain Python, to be read as the specification.

Every reference takes the starting weights (a list of float64 tensors), the gradients of the loss and the learning rate
of each step, and a strength for each tensor. It yields the weights after each step. Nothing here is fast, and nothing
imports ``wdlab``. ``tests/test_reference.py`` compares the real methods with these loops step by step.
"""
