"""Progress of a run: a bar with the time left on a terminal, otherwise a plain line every 30 seconds.

Called by the loop. A sweep on a terminal shows one bar for all runs (``sweeps.progress``); then the runs show none.
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


class Progress:
    """Display of how far a run is. ``update`` is called at log points only, so other steps cost nothing.

    Args:
        name: of the run.
        steps: the number of updates of the whole run.
        first: the number of updates that were done before, if the run was resumed.
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
        """Show that ``step`` updates are done, with the training loss of the newest log line, ``row``."""
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
    """Return True if standard error is a terminal and this process is not one of several workers that share it."""
    return sys.stderr.isatty() and not is_worker()


def format_duration(seconds: float) -> str:
    """Return a duration in seconds as text: m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
