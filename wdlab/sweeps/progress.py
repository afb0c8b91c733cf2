"""One progress bar for all runs of a sweep, on a terminal."""

import sys
import threading
from typing import Self

from tqdm import tqdm

from wdlab.engine.progress import on_terminal
from wdlab.records.directory import RunDirectory

SECONDS_BETWEEN_LOOKS = 0.5


class SweepProgress:
    """One bar over the steps of all runs of a sweep, read off their directories, whatever launcher runs them.

    A line is printed as each run ends. Does nothing where there is no terminal; there the runs print their own lines.
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
            self._look()
        self._bar.close()

    def _watch(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            self._look()

    def _look(self) -> None:
        left = []
        for directory, steps, before in self._left:
            ended = directory.status in ("done", "diverged", "failed") and directory.read("status.json") != before
            if ended:
                tqdm.write(f"{directory.name}: {directory.status}", file=sys.stdout)
                self._ended_steps += steps
            else:
                left.append((directory, steps, before))
        self._left = left
        done = self._ended_steps + sum(directory.last_step for directory, _, _ in left)
        self._bar.update(done - self._bar.n)
