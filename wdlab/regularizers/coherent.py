"""Gradient-coherent regularization (P3): a strong L1 or L2, only while the loss gradient stays coherent under it."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from wdlab.regularizers.base import check_over_time
from wdlab.regularizers.checks import check_choice
from wdlab.regularizers.in_loss import InLoss
from wdlab.regularizers.over_time import CoherenceGate, OverTime
from wdlab.regularizers.penalties import Absolute, HalfSquare

PENALTIES = {"l1": Absolute, "l2": HalfSquare}


class Coherent(InLoss):
    """``L1`` or ``L2`` in the loss gradient under a :class:`CoherenceGate`.  [grade C: our reading]

    Park et al. 2018, arXiv 1811.08056 (P3). The optimizer multiplies the decay by its learning rate. Any other method
    takes the gate as its ``over_time``. Decays every parameter it is given; ``for_model`` gives it the weights of
    linear, convolution and embedding layers unless ``scope`` is ``all``.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
        penalty: ``l1`` or ``l2``.
        coherence, threshold, momentum: as in :class:`CoherenceGate`.
        route: as in :class:`wdlab.regularizers.L2`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        strength: float,
        penalty: str = "l2",
        coherence: str = "running_mean",
        threshold: float = 0.1,
        momentum: float = 0.9,
        route: str = "both",
        over_time: OverTime | Iterable[OverTime] | None = None,
    ) -> None:
        function = PENALTIES[check_choice("penalty", penalty, tuple(PENALTIES))]()
        gate = CoherenceGate(coherence, threshold, momentum)
        super().__init__(params, strength, function, route, (gate, *check_over_time(over_time)))
