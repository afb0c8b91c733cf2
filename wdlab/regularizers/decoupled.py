"""Decoupled weight decay: the plain one of AdamW, and the scheduled one of AdamS and SGDS (P5)."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from wdlab.regularizers.base import check_over_time
from wdlab.regularizers.gradient_scale import GradientScale
from wdlab.regularizers.in_loss import L2
from wdlab.regularizers.over_time import OverTime


class DecoupledDecay(L2):
    """``w *= 1 - lr * s`` before the optimizer's step, whatever the optimizer.  [grade B]

    With torch's Adam this is AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), to the last bit. The learning rate
    multiplies the decay. The factor is never negative. The penalty that this belongs to is ``R(w) = |w|^2 / 2``. Decays
    every parameter it is given; ``for_model`` gives it the weights of linear, convolution and embedding layers unless
    ``scope`` is ``all``.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        strength: float,
        over_time: OverTime | Iterable[OverTime] | None = None,
    ) -> None:
        super().__init__(params, strength, "decoupled", over_time)


class ScheduledDecay(DecoupledDecay):
    """Scheduled weight decay, SWD: decoupled decay, its strength divided by the scale of the gradients.  [grade A]

    Xie et al. 2020/2023, arXiv 2011.11152 (P5): ``w *= 1 - lr * s / sqrt(V)`` with Adam, AdamW and AMSGrad, where V is
    the mean of the second moment over all of the optimizer's parameters; ``w *= 1 - lr * s (1 - dampening) / (1 -
    momentum)`` with SGD. The learning rate multiplies the decay. The factor is never negative: where gradients vanish,
    ``s / sqrt(V)`` has no limit. Where they are 0, nothing is decayed. It is ``DecoupledDecay`` under a
    :class:`GradientScale`, which any other method takes as well.

    The released optimizers decay all parameters (``scope=all``); here it decays those it is given, and ``for_model``
    gives it the weights of linear, convolution and embedding layers unless ``scope`` is ``all``.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        strength: float,
        over_time: OverTime | Iterable[OverTime] | None = None,
    ) -> None:
        super().__init__(params, strength, (GradientScale(), *check_over_time(over_time)))
