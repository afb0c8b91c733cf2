"""Decoupled weight decay: the plain one of AdamW, and the scheduled one of AdamS and SGDS (P5)."""

from collections.abc import Sequence

from torch import Tensor

from wdlab.regularizers.base import Params, Regularizer, Schedules
from wdlab.regularizers.gradient_scale import GradientScale
from wdlab.regularizers.in_loss import shrink_
from wdlab.regularizers.over_time import check_over_time
from wdlab.regularizers.penalties import HalfSquare


class DecoupledDecay(Regularizer):
    """``w *= 1 - lr * s`` before the optimizer's step, whatever the optimizer.

    [grade B]

    With torch's Adam this is AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), to the last bit. The learning rate
    multiplies the decay. The factor is never negative. The penalty that this belongs to is ``R(w) = |w|^2 / 2``.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
    """

    stackable = True

    def __init__(self, params: Params, strength: float, over_time: Schedules = None) -> None:
        super().__init__(params, strength, over_time)

    def before_step(self) -> None:
        for group in self.active_groups():
            shrink_(group.params, group.lr * group.strength)

    def penalty(self) -> Tensor:
        return sum((HalfSquare().value(g["params"]) * g["strength"] for g in self.groups), super().penalty())

    def penalty_gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        return HalfSquare().gradient(params)


class ScheduledDecay(DecoupledDecay):
    """Scheduled weight decay, SWD: decoupled decay, its strength divided by the scale of the gradients.

    [grade A]

    Xie et al. 2020/2023, arXiv 2011.11152 (P5): ``w *= 1 - lr * s / sqrt(V)`` with Adam, AdamW and AMSGrad, where V is
    the mean of the second moment over all of the optimizer's parameters; ``w *= 1 - lr * s (1 - dampening) / (1 -
    momentum)`` with SGD. The learning rate multiplies the decay. The factor is never negative: where gradients vanish,
    ``s / sqrt(V)`` has no limit. Where they are 0, nothing is decayed. It is ``DecoupledDecay`` under a
    :class:`GradientScale`, which any other method takes as well.

    The released optimizers decay all parameters, which is ``scope="all"`` of ``for_model``.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
    """

    stackable = True

    def __init__(self, params: Params, strength: float, over_time: Schedules = None) -> None:
        super().__init__(params, strength, (GradientScale(), *check_over_time(over_time)))
