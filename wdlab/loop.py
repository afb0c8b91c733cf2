"""The training loop: a fixed order of moments in an update, whatever the method, the data set or the number of runs."""

import time
from collections.abc import Callable
from typing import Any, Protocol, Self

from wdlab.engine.observer import LOG_INTERVALS, is_due
from wdlab.engine.progress import Progress
from wdlab.settings import TrainSettings


class Program(Protocol):
    """The interface that the loop drives: one run (``OneRun``), or several side by side (``Stack``).

    Attributes:
        name: for the progress bar.
        first: number of updates made in earlier sessions.
        last: the newest log line, of one of the runs.
    """

    name: str
    first: int
    last: dict[str, Any]

    def __enter__(self) -> Self:
        """Attach the methods for as long as the loop runs."""

    def __exit__(self, *error: object) -> None:
        """Detach the methods."""

    def begin(self) -> bool:
        """Record the state at the beginning; return False if no run is left to train."""

    def backward(self, step: int) -> None:
        """Compute the gradients of update ``step + 1``."""

    def observe(self, step: int) -> None:
        """Measure gradients and weights between backward and the update, for the log line of update ``step + 1``."""

    def update(self, step: int) -> None:
        """Make update ``step + 1``: clip, methods, optimizer, average."""

    def record(self, step: int) -> bool:
        """Write the log line of the state after ``step`` updates; return False if every run has diverged."""

    def save(self, step: int) -> None:
        """Write a checkpoint of the state after ``step`` updates."""

    def any_true(self, flag: bool) -> bool:
        """Return True if ``flag`` is true in one of the processes that share the run."""


def fit(
    program: Program,
    settings: TrainSettings,
    checkpoint_seconds: float,
    stop_requested: Callable[[], bool] = lambda: False,
) -> str:
    """Train to ``settings.steps`` updates.

    A log line belongs to the state after ``step`` updates. There is one at step 0, every ``log_every`` updates (with
    the whole splits evaluated every ``eval_every``, and the sharpness every ``sharpness_every``), and at the last step
    with all that is measured at all.

    Args:
        program: the run, or the runs, at the beginning or restored from checkpoints.
        settings: of the training.
        checkpoint_seconds: time between checkpoints.
        stop_requested: called in every step; True ends the training after it, with a checkpoint.

    Returns:
        ``done``, ``interrupted``, or ``diverged`` if no run is left (a loss was not finite since the last log line, or
        a weight or loss at a log line is not).
    """
    steps, saved_at = settings.steps, time.monotonic()
    if not program.begin():
        return "diverged"
    with program, Progress(program.name, steps, program.first) as progress:
        for step in range(program.first, steps):
            done = step + 1
            is_logged = any(is_due(settings, event, done) for event in LOG_INTERVALS)
            program.backward(step)
            if is_logged:
                program.observe(step)
            program.update(step)
            if is_logged:
                if not program.record(done):
                    return "diverged"
                progress.update(done, program.last)
            stopping = program.any_true(stop_requested())
            if done == steps or stopping or time.monotonic() - saved_at >= checkpoint_seconds:
                program.save(done)
                saved_at = time.monotonic()
            if stopping and done < steps:
                return "interrupted"
    return "done"
