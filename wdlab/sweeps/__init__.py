"""Sweeps: the Hydra sweeper of ``-m``, its launchers, progress bar and summary."""
