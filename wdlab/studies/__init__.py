"""Computations that figures need in addition to training runs.

``checkpoints`` measures the checkpoints of finished runs, ``one_weight`` follows a single weight under a penalty,
``quartic`` does so for P2's own example.
"""
