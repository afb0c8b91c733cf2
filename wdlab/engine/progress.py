"""Progress of a run and of a sweep: a bar with an ETA on a terminal, plain lines now and then elsewhere.

Called by the loop and by ``sweep``. In a sweep on a terminal there is one bar for all runs, and they keep quiet.
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


def on_terminal() -> bool:
    """Whether a person watches standard error, and this process is not a worker among several that write to it."""
    return sys.stderr.isatty() and not is_worker()


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
