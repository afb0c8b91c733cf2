"""The summary that a sweep prints at its end. Called by the sweeper."""

from collections import Counter

from wdlab.errors import RunFailed
from wdlab.sweeps.job import SweepJob


def print_summary(jobs: list[SweepJob]) -> None:
    """Print the number of runs in each state, and a line for each run with a ``problem``.

    Raises:
        RunFailed: if a run has a ``problem``.
    """
    print_counts(jobs)
    bad = [f"{job.directory.name}: {reason}" for job in jobs if (reason := job.problem) is not None]
    for line in dict.fromkeys(bad):
        print(f"  {line}", flush=True)
    if bad:
        raise RunFailed(f"{len(bad)} of {len(jobs)} runs did not end well; see above")


def print_counts(jobs: list[SweepJob]) -> None:
    """Print the number of runs in each state, in one line."""
    counts = Counter(job.state for job in jobs)
    print("sweep: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())), flush=True)
