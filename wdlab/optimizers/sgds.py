"""SGDS: SGD with scheduled weight decay (P5)."""

from typing import Any

import torch
from torch import Tensor

from wdlab.optimizers.base import DropIn, Params
from wdlab.regularizers import ScheduledDecay
from wdlab.regularizers.gradient_scale import check_momentum


class SGDS(DropIn, torch.optim.SGD):
    """SGD with scheduled weight decay, SWD (P5).

    [grade A: agrees with the released SGDS to 1e-9]

    Xie et al. 2020/2023, arXiv 2011.11152: ``w *= 1 - lr * weight_decay (1 - dampening) / (1 - momentum)``, then SGD's
    step. The learning rate multiplies the decay. All parameters are decayed, except the parameters of groups with
    ``weight_decay=0``. A negative factor is replaced by 0. With ``weight_decay=0`` the steps are SGD's, bit by bit.
    ``state_dict`` has SGD's entries.

    Args:
        params: parameters, ``(name, parameter)`` pairs or groups, as in torch.
        lr: learning rate.
        momentum: factor of the momentum, in [0, 1).
        dampening: dampening of the momentum, at most 1.
        weight_decay: strength of the decay, >= 0.
        nesterov: True for Nesterov momentum, which requires a momentum > 0 and no dampening.
        foreach: as in ``torch.optim.SGD``.
        maximize: as in ``torch.optim.SGD``.
        fused: as in ``torch.optim.SGD``.

    Raises:
        ValueError: if a value is out of its range, or a parameter is complex.
    """

    stacked_settings = ("lr", "weight_decay")

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            foreach=foreach,
            maximize=maximize,
            fused=fused,
        )
        self._step_supports_amp_scaling = False

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_momentum(group["momentum"], group["dampening"])

    def _update(self) -> None:
        self._step_with_method(torch.optim.SGD)

    @classmethod
    def make_method(cls, groups: list[dict[str, Any]]) -> ScheduledDecay:
        """Create the scheduled decay that implements the optimizer's weight decay for ``groups``."""
        return ScheduledDecay(groups, 0.0)
