"""One progress bar for all runs of a sweep, on a terminal. Called by the sweeper."""

import sys
import threading
import time
from typing import Self

from tqdm import tqdm

from wdlab.engine.progress import on_terminal
from wdlab.records.directory import RunDirectory

REFRESH_SECONDS = 0.5
LARGEST_SHARE = 0.02  # of the time spent reading run directories; a refresh of many runs is followed by a longer pause


class SweepProgress:
    """Context manager that shows one bar over the steps of all runs of a sweep, and prints a line when a run ends.

    The steps are read from the run directories, so the bar works with any launcher. Without a terminal nothing is
    shown, and the runs print their own lines.

    Args:
        runs: the directory and the number of steps of each run.
    """

    def __init__(self, runs: list[tuple[RunDirectory, int]]) -> None:
        self._left = [(directory, steps, directory.read("status.json")) for directory, steps in runs]
        self._over = threading.Event()
        total = sum(steps for _, steps in runs)
        self._bar = tqdm(total=total, desc=f"{len(runs)} runs", unit="step", smoothing=0, disable=not on_terminal())
        self._ended_steps = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        if not self._bar.disable:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._bar.disable:
            self._over.set()
            self._thread.join()
            self._refresh()
        self._bar.close()

    def _watch(self) -> None:
        """Refresh the bar every ``REFRESH_SECONDS``, or less often, until the sweep is over. Called in a thread."""
        pause = REFRESH_SECONDS
        while not self._over.wait(pause):
            start = time.monotonic()
            self._refresh()
            pause = max(REFRESH_SECONDS, (time.monotonic() - start) / LARGEST_SHARE)

    def _refresh(self) -> None:
        """Read the run directories, print a line for each run that has ended since the last call, and move the bar."""
        left = []
        for directory, steps, before in self._left:
            status = directory.read("status.json")
            if status != before and status.get("status") in ("done", "diverged", "failed"):
                tqdm.write(f"{directory.name}: {status['status']}", file=sys.stdout)
                self._ended_steps += steps
            else:
                left.append((directory, steps, before))
        self._left = left
        done = self._ended_steps + sum(directory.last_step for directory, _, _ in left)
        self._bar.update(done - self._bar.n)
