"""How the threads of torch wait for each other on the CPU. Applied when ``wdlab`` is imported; imports no torch."""

import os
import sys

SPINS = "3000"  # rounds of a waiting thread before it sleeps, about 50 microseconds
DECIDED_BY = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def bound_spinning() -> None:
    """Let a waiting thread of GNU OpenMP spin for a short time and then sleep, in this process and those it starts.

    As it comes, it spins for many milliseconds. Beside other work the thread that it waits for is then not scheduled,
    and a step takes 10 to 100 times as long. Where one of ``DECIDED_BY`` is set, that decides. OpenMP reads its
    settings once, when torch is imported: where that was before, nothing changes in this process.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in DECIDED_BY):
        os.environ["GOMP_SPINCOUNT"] = SPINS
