"""Progress of a run and of a sweep: a bar with an ETA on a terminal, plain lines now and then elsewhere.

Called by the loop and by ``sweep``. In a sweep on a terminal there is one bar for all runs, and they keep quiet.
"""

import logging
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Self

from tqdm import tqdm

from wdlab.runs import RunDirectory
from wdlab.stopping import is_worker

log = logging.getLogger("wdlab")

SECONDS_BETWEEN_LINES = 30
SECONDS_BETWEEN_LOOKS = 0.5


class Progress:
    """Shows how far a run is. ``update`` is called at log points only, so a step pays nothing for it."""

    def __init__(self, name: str, steps: int, first: int) -> None:
        self._name, self._steps, self._first = name, steps, first
        self._started = self._told = time.monotonic()
        hidden = not on_terminal() or not log.isEnabledFor(logging.INFO)
        self._bar = tqdm(total=steps, initial=first, desc=name, unit="step", leave=False, disable=hidden)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, step: int, row: Mapping[str, Any]) -> None:
        """Show that ``step`` updates are done; ``row`` is the newest log line."""
        loss = row.get("train/loss")
        if not self._bar.disable:
            if loss is not None:
                self._bar.set_postfix_str(f"train loss {loss:.4g}", refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._told >= SECONDS_BETWEEN_LINES and step < self._steps:
            self._told = now
            left = (now - self._started) / (step - self._first) * (self._steps - step)
            shown = f", train loss {loss:.4g}" if loss is not None else ""
            log.info("%s: step %d of %d%s, about %s left", self._name, step, self._steps, shown, clock(left))


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


def on_terminal() -> bool:
    """Whether a person watches standard error, and this process is not a worker among several that write to it."""
    return sys.stderr.isatty() and not is_worker()


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
