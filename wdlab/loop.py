"""The training loop. Every update does the same operations in the same order, for every method and number of runs."""

import time
from collections.abc import Callable
from typing import Any, Protocol, Self

from wdlab.engine.observer import LOG_INTERVALS, is_due
from wdlab.engine.progress import Progress
from wdlab.settings import TrainSettings


class Program(Protocol):
    """The interface that :func:`fit` drives: one run (``OneRun``), or several runs side by side (``Stack``).

    Attributes:
        name: the text shown by the progress bar.
        first: the number of updates that earlier sessions of the run have made.
        last: the newest log line of the run; for a stack, of one run that is still trained.
    """

    name: str
    first: int
    last: dict[str, Any]

    def __enter__(self) -> Self:
        """Attach the methods (regularizers) to their optimizers; they stay attached until ``__exit__``."""

    def __exit__(self, *error: object) -> None:
        """Detach the methods from their optimizers."""

    def begin(self) -> bool:
        """Write the log line of step 0 for a new run; return False if every run has diverged in an earlier session."""

    def backward(self, step: int) -> None:
        """Compute the gradients of update ``step + 1``."""

    def observe(self, step: int) -> None:
        """Measure gradients and weights between backward and the update, for the log line of update ``step + 1``."""

    def update(self, step: int) -> None:
        """Make update ``step + 1``: clip the gradient, run the methods and the optimizer, update the weight average."""

    def record(self, step: int) -> bool:
        """Write the log line of the state after ``step`` updates; return False if every run has diverged."""

    def save(self, step: int) -> None:
        """Write a checkpoint of the state after ``step`` updates."""

    def any_true(self, flag: bool) -> bool:
        """Return True if ``flag`` is true in at least one of the processes that share the run."""


def fit(
    program: Program,
    settings: TrainSettings,
    checkpoint_seconds: float,
    stop_requested: Callable[[], bool] = lambda: False,
) -> str:
    """Train until ``settings.steps`` updates are made, a stop is requested, or every run has diverged.

    A log line describes the state after ``step`` updates. One is written at step 0, after every ``log_every`` updates,
    and after the last update. Whole splits are also evaluated every ``eval_every`` updates, and the sharpness is also
    measured every ``sharpness_every`` updates (never if null), and the gradient of the whole training split every
    ``full_gradient_every``; all are part of the last log line too.

    Args:
        program: the run or the stack of runs, new or restored from checkpoints.
        settings: the settings of ``train``.
        checkpoint_seconds: seconds from one checkpoint to the next.
        stop_requested: called after every update; if it returns True, a checkpoint is written and the training ends.

    Returns:
        ``done`` after the last update; ``interrupted`` if a stop was requested before it; ``diverged`` if every run has
        diverged. A run diverges if a training loss since the previous log line, or the weights or the training loss of
        the whole split at a log line, are not finite.
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
