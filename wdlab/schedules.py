"""Pure functions from the step to a factor in [0, 1] on the learning rate. Used by the loop; see configs/lr_schedule.

Every schedule takes ``(step, steps, steps_per_epoch)``: the number of updates already made, the length of the run in
updates, and the length of an epoch in updates. The factor multiplies the optimizer's ``lr`` for update ``step + 1``.
"""

import math
from collections.abc import Sequence


def constant(step: int, steps: int, steps_per_epoch: int) -> float:
    """1 at every step."""
    return 1.0


def multistep(step: int, steps: int, steps_per_epoch: int, milestones: Sequence[float], gamma: float = 0.1) -> float:
    """``gamma ** k`` after ``k`` of the ``milestones`` (in epochs) have passed."""
    epoch = step / steps_per_epoch
    return gamma ** sum(epoch >= milestone for milestone in milestones)


def cosine(step: int, steps: int, steps_per_epoch: int, warmup_epochs: float = 0.0, final: float = 0.0) -> float:
    """Linear warm-up over ``warmup_epochs`` epochs, then half a cosine from 1 down to ``final`` at the last step."""
    warmup = warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1.0, steps - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
