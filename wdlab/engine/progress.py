"""Display of a run's progress: on a terminal a bar with the time left, otherwise a line every 30 seconds.

Used by the loop. A sweep on a terminal shows one bar for all its runs (``sweeps.progress``); the runs then show none.
"""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, Self

from tqdm import tqdm

from wdlab.engine.stopping import is_worker

log = logging.getLogger("wdlab")

SECONDS_BETWEEN_LINES = 30

tqdm.monitor_interval = 0  # no thread that watches bars: it never ends, and `wdlab.process` waits for threads


class Progress:
    """Display of the progress of a run, as a context manager. It is updated at log points, so other steps cost nothing.

    Args:
        name: the name of the run.
        steps: the number of updates of the whole run.
        first: the number of updates that earlier sessions have made; 0 for a new run.
    """

    def __init__(self, name: str, steps: int, first: int) -> None:
        self._name, self._steps, self._first = name, steps, first
        self._started = self._last_line = time.monotonic()
        hidden = not on_terminal() or not log.isEnabledFor(logging.INFO)
        self._bar = tqdm(total=steps, initial=first, desc=name, unit="step", leave=False, disable=hidden)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, step: int, row: Mapping[str, Any]) -> None:
        """Show that ``step`` updates are made, and the training loss in ``row``, the newest log line."""
        loss = row.get("train/loss")
        if not self._bar.disable:
            if loss is not None:
                self._bar.set_postfix_str(f"train loss {loss:.4g}", refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES and step < self._steps:
            self._last_line = now
            left = (now - self._started) / (step - self._first) * (self._steps - step)
            shown = f", train loss {loss:.4g}" if loss is not None else ""
            log.info("%s: step %d of %d%s, about %s left", self._name, step, self._steps, shown, format_duration(left))


def on_terminal() -> bool:
    """Return True if standard error is a terminal and this process is not a worker (see ``stopping.is_worker``)."""
    return sys.stderr.isatty() and not is_worker()


def format_duration(seconds: float) -> str:
    """Return a duration, given in seconds, as text: ``m:ss``, or ``h:mm:ss`` from one hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
