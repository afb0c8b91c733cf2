"""Pure functions from the step to a factor in [0, 1]: on the learning rate (``configs/lr_schedule``, used by the loop)
and on the strength of a regularizer (``configs/regularizer/over_time``, used by ``regularizers.over_time``).
"""

import math
from collections.abc import Sequence

# -- on the learning rate: (step, steps, steps_per_epoch) are the updates already made, the length of the run in
# updates, and the length of an epoch in updates. The factor multiplies the optimizer's ``lr`` for update ``step +
# 1``.


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
        return warm_up(step, warmup)
    progress = min(1.0, (step - warmup) / max(1.0, steps - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


# -- on a strength: ``step`` updates have been made, ``length`` is in updates.


def early(step: int, length: float) -> float:
    """1 for the first ``length`` updates, then 0."""
    return 1.0 if step < length else 0.0


def delayed(step: int, length: float) -> float:
    """0 for the first ``length`` updates, then 1."""
    return 0.0 if step < length else 1.0


def warm_up(step: int, length: float) -> float:
    """``(step + 1) / (length + 1)`` for the first ``length`` updates, then 1."""
    return (step + 1) / (length + 1) if step < length else 1.0
