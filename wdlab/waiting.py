"""The way torch's threads wait for each other on the CPU. Set when ``wdlab`` is imported; does not import torch."""

import os
import sys

SPINS = "3000"  # iterations of a waiting thread before it sleeps, about 50 microseconds
USER_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # environment variables


def limit_spinning() -> None:
    """Let a waiting thread of GNU OpenMP spin for a short time and then sleep, in this process and those it starts.

    By default it spins for many milliseconds. On a busy machine it thereby takes the core from the thread that it
    waits for, and a step takes 10 to 100 times as long. Nothing is changed if the user has set one of
    ``USER_SETTINGS``. OpenMP reads its settings once, when torch is imported, so this has to be called before.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in USER_SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = SPINS
