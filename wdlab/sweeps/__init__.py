"""Sweeps: the Hydra sweeper and the launchers."""
