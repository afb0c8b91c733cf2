"""Schedules: pure functions from the step to a factor.

Every schedule has one signature, ``(step, steps, steps_per_epoch, **options) -> float``, so that each can be a factor
on the learning rate (``configs/lr_schedule``) and on the strength of a regularizer (``configs/regularizer/over_time``).
``step`` is the number of updates already made, ``steps`` the length of the run in updates, ``steps_per_epoch`` the
length of an epoch in updates. The factor applies to update ``step + 1``. No torch ``LRScheduler`` is used, since a
function of the step resumes exactly.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Clock(NamedTuple):
    """The length of a run and of an epoch, in updates. None where it is not known."""

    steps: int | None = None
    steps_per_epoch: int | None = None


def constant(step: int, steps: int | None, steps_per_epoch: int | None) -> float:
    """Return 1 at every step."""
    return 1.0


def multistep(
    step: int, steps: int | None, steps_per_epoch: int, milestones: Sequence[float], gamma: float = 0.1
) -> float:
    """Return ``gamma ** k`` after ``k`` of the ``milestones`` (in epochs) have passed."""
    epoch = step / steps_per_epoch
    return gamma ** sum(epoch >= milestone for milestone in milestones)


def cosine(step: int, steps: int, steps_per_epoch: int, warmup_epochs: float = 0.0, final: float = 0.0) -> float:
    """Return a linear warm-up over ``warmup_epochs`` epochs, then half a cosine from 1 to ``final``."""
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
    """Return 1 for the first ``epochs`` epochs or ``updates`` updates, then 0."""
    return 1.0 if step < length(steps_per_epoch, epochs, updates) else 0.0


def delayed(
    step: int,
    steps: int | None,
    steps_per_epoch: int | None,
    epochs: float | None = None,
    updates: float | None = None,
) -> float:
    """Return 0 for the first ``epochs`` epochs or ``updates`` updates, then 1."""
    return 0.0 if step < length(steps_per_epoch, epochs, updates) else 1.0


def warm_up(
    step: int,
    steps: int | None,
    steps_per_epoch: int | None,
    epochs: float | None = None,
    updates: float | None = None,
) -> float:
    """Return ``(step + 1) / (n + 1)`` for the first ``n`` updates (``epochs`` epochs or ``updates``), then 1."""
    n = length(steps_per_epoch, epochs, updates)
    return (step + 1) / (n + 1) if step < n else 1.0


def length(steps_per_epoch: int | None, epochs: float | None, updates: float | None) -> float:
    """Return a length in updates that is given in epochs or in updates.

    Raises:
        ValueError: if it is given in epochs, and the length of an epoch is not known.
    """
    if updates is not None:
        return updates
    if steps_per_epoch is None:
        raise ValueError(f"epochs={epochs}: needs steps_per_epoch too, or give the length as steps")
    return epochs * steps_per_epoch
