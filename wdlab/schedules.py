"""Schedules: pure functions from the number of updates to a factor.

Every schedule has the signature ``(step, steps, steps_per_epoch, **options) -> float``. It can be a factor on the
learning rate (``configs/lr_schedule``) or on the strength of a regularizer (``configs/regularizer/over_time``).
``step`` is the number of updates already made, ``steps`` the length of the run in updates, ``steps_per_epoch`` the
length of an epoch in updates. The returned factor applies to the next update, number ``step + 1``. These functions are
used instead of torch's ``LRScheduler``, since they have no state and so resume exactly.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Clock(NamedTuple):
    """The length of a run and the length of an epoch, both in updates, and the schedule of its learning rate."""

    steps: int | None = None  # length of the run; None if unknown
    steps_per_epoch: int | None = None  # length of an epoch; None if unknown
    lr_schedule: Callable[..., float] | None = None  # a function of this module; None if unknown

    def lr_factor(self, step: int) -> float:
        """Return the factor of the schedule on the learning rate of update ``step + 1``."""
        return self.lr_schedule(step, self.steps, self.steps_per_epoch)

    @property
    def peak_lr_factor(self) -> float:
        """The largest factor of the schedule in the run; 1 if the schedule or the length of the run is unknown."""
        return 1.0 if self.lr_schedule is None or self.steps is None else _largest_factor(self)


@functools.lru_cache(maxsize=16)
def _largest_factor(clock: Clock) -> float:
    return max(map(clock.lr_factor, range(clock.steps)))


def constant(step: int, steps: int | None, steps_per_epoch: int | None) -> float:
    """Return the factor 1 for every update."""
    return 1.0


def multistep(
    step: int, steps: int | None, steps_per_epoch: int, milestones: Sequence[float], gamma: float = 0.1
) -> float:
    """Return ``gamma ** k``, where ``k`` is the number of ``milestones`` (in epochs) that have been reached."""
    epoch = step / steps_per_epoch
    return gamma ** sum(epoch >= milestone for milestone in milestones)


def cosine(step: int, steps: int, steps_per_epoch: int, warmup_epochs: float = 0.0, final: float = 0.0) -> float:
    """Return a factor that rises linearly to 1 over ``warmup_epochs`` epochs, then falls to ``final`` as half a cosine.

    The cosine ends with the run, after ``steps`` updates.
    """
    warmup = warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1.0, steps - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def early(
    step: int,
    steps: int | None,
    steps_per_epoch: int | None,
    epochs: float | None = None,
    updates: float | None = None,
) -> float:
    """Return the factor 1 for the first ``epochs`` epochs (or ``updates`` updates, if given), then 0."""
    return 1.0 if step < length(steps_per_epoch, epochs, updates) else 0.0


def delayed(
    step: int,
    steps: int | None,
    steps_per_epoch: int | None,
    epochs: float | None = None,
    updates: float | None = None,
) -> float:
    """Return the factor 0 for the first ``epochs`` epochs (or ``updates`` updates, if given), then 1."""
    return 0.0 if step < length(steps_per_epoch, epochs, updates) else 1.0


def warm_up(
    step: int,
    steps: int | None,
    steps_per_epoch: int | None,
    epochs: float | None = None,
    updates: float | None = None,
) -> float:
    """Return the factor ``(step + 1) / (n + 1)`` for the first ``n`` updates, then 1.

    ``n`` is ``updates`` if given, else the number of updates in ``epochs`` epochs.
    """
    n = length(steps_per_epoch, epochs, updates)
    return (step + 1) / (n + 1) if step < n else 1.0


def length(steps_per_epoch: int | None, epochs: float | None, updates: float | None) -> float:
    """Return a length in updates: ``updates`` if it is not None, else ``epochs * steps_per_epoch``.

    Args:
        steps_per_epoch: length of an epoch in updates; None if unknown.
        epochs: the length in epochs; not used if ``updates`` is given.
        updates: the length in updates; None if it is given in epochs.

    Raises:
        ValueError: if ``updates`` and ``steps_per_epoch`` are both None.
    """
    if updates is not None:
        return updates
    if steps_per_epoch is None:
        raise ValueError(f"epochs={epochs}: needs steps_per_epoch too, or give the length as steps")
    return epochs * steps_per_epoch
