"""Decoupled weight decay: ``DecoupledDecay`` as in AdamW, and ``ScheduledDecay`` as in AdamS and SGDS (P5)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wdlab.regularizers.base import Params, Schedules
from wdlab.regularizers.cautious import CanBeCautious
from wdlab.regularizers.gradient_scale import GradientScale
from wdlab.regularizers.in_loss import shrink_
from wdlab.regularizers.over_time import check_over_time
from wdlab.regularizers.penalties import HalfSquare
from wdlab.tensors import local_shards, scaled


class DecoupledDecay(CanBeCautious):
    """Decoupled weight decay: ``w *= 1 - lr * s`` before the step of any optimizer.

    [grade B]

    With torch's Adam this is AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), to the last bit. The learning rate
    multiplies the decay. The factor ``1 - lr * s`` is replaced by 0 where it would be negative. The corresponding
    penalty is ``R(w) = |w|^2 / 2``.

    Cautious weight decay (Chen et al. 2025, arXiv 2510.12402) decays only the weights that the optimizer's update does
    not move away from zero: ``w -= lr s w0`` where ``(w0 - u) w0 >= 0``, with ``w0`` the weight before the optimizer's
    step and ``u`` the weight after it.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
        cautious: True for cautious weight decay, which needs the memory for a copy of the weights.
    """

    stackable = True

    def __init__(self, params: Params, strength: float, over_time: Schedules = None, cautious: bool = False) -> None:
        super().__init__(params, strength, over_time, cautious)

    def before_step(self) -> None:
        super().before_step()
        if not self.cautious:
            for group in self.active_groups():
                shrink_(group.params, group.lr * group.strength)

    def after_step(self) -> None:
        for group in self.active_groups() if self.cautious else ():
            rate, weights = group.lr * group.strength, local_shards(group.params)
            rate = rate.clamp(max=1) if isinstance(rate, Tensor) else min(1.0, rate)
            decayed = torch._foreach_sub(weights, scaled(self.weights_before(group.params), rate))
            torch._foreach_copy_(weights, self.where_allowed(group.params, decayed))

    def penalty(self) -> Tensor:
        return sum((HalfSquare().value(g["params"]) * g["strength"] for g in self.groups), super().penalty())

    def penalty_gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        return HalfSquare().gradient(params)


class ScheduledDecay(DecoupledDecay):
    """Scheduled weight decay, SWD: decoupled decay whose strength is divided by the scale of the gradients.

    [grade A]

    Xie et al. 2020/2023, arXiv 2011.11152 (P5). With Adam, AdamW and AMSGrad: ``w *= 1 - lr * s / sqrt(V)``, where V is
    the mean of the bias-corrected second moment over all elements of the optimizer's parameters. With SGD:
    ``w *= 1 - lr * s (1 - dampening) / (1 - momentum)``. Other optimizers are refused at ``attach`` (ValueError). The
    learning rate multiplies the decay.

    As the gradients vanish, ``s / sqrt(V)`` grows without bound, so a negative factor is replaced by 0. If V is 0,
    nothing is decayed. The method is ``DecoupledDecay`` with a :class:`GradientScale`, which any other method accepts
    as its ``over_time``. The released optimizers decay all parameters; ``for_model`` does with ``scope="all"``.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
        cautious: as in :class:`DecoupledDecay`.
    """

    stackable = True

    def __init__(self, params: Params, strength: float, over_time: Schedules = None, cautious: bool = False) -> None:
        super().__init__(params, strength, (GradientScale(), *check_over_time(over_time)), cautious)
