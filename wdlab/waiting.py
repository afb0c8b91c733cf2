"""The time that torch's CPU threads spin while they wait for each other. Set on import of ``wdlab``; needs no torch."""

import os
import sys

SPIN_COUNT = "3000"  # iterations that a waiting thread spins before it sleeps, about 50 microseconds
USER_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # environment variables


def limit_spinning() -> None:
    """Limit the time for which a waiting thread of GNU OpenMP spins before it sleeps, here and in child processes.

    By default such a thread spins for many milliseconds. On a busy machine it thereby keeps a core from the thread that
    it waits for, and a training step takes 10 to 100 times as long. Nothing is changed if the user has set one of
    ``USER_SETTINGS``. OpenMP reads its settings once, when torch is imported, so after that nothing is changed either.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in USER_SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
