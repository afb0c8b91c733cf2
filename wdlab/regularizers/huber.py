"""Huber decay: decoupled decay for the Huber penalty, whose pull on large weights does not grow with the weight."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wdlab.regularizers.base import Params, Schedules
from wdlab.regularizers.cautious import CanBeCautious
from wdlab.regularizers.checks import check_number
from wdlab.regularizers.penalties import Huber
from wdlab.tensors import local_shards, scaled


class HuberDecay(CanBeCautious):
    """Huber decay: the exact proximal step on the Huber penalty after the step of any optimizer.

    [grade B]

    Guo and Fan 2025, arXiv 2511.14721. The penalty ``R(w)`` is the sum of ``w^2 / 2`` over the weights with
    ``|w| <= delta`` and of ``delta (|w| - delta / 2)`` over the others. The optimizer's step results in the weight
    ``u``; with ``t = lr * s`` the new weight is ``u / (1 + t)`` if ``|u| <= (1 + t) delta``, else
    ``u - t delta sign(u)``. The learning rate multiplies the decay. As ``delta`` grows this becomes decoupled decay
    with the factor ``1 / (1 + t)``. As ``delta`` vanishes with ``t delta`` fixed, it becomes ``PNormProx`` with p=1.

    The threshold is the same in every step and for every tensor. The paper also describes a threshold per layer that
    follows the mean size of the weights.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
        delta: the threshold, > 0, in units of the weights. A group may have its own.
        cautious: True to take the step only for weights that the optimizer's update does not move away from zero, as in
            :class:`wdlab.regularizers.DecoupledDecay`.

    Raises:
        ValueError: for a delta that is not a finite number > 0, or a negative or non-finite strength.
    """

    stackable = minimizes_penalty = True

    def __init__(
        self,
        params: Params,
        strength: float,
        delta: float = 0.1,
        over_time: Schedules = None,
        cautious: bool = False,
    ) -> None:
        self._default_delta = check_number("delta", delta, above=0.0)
        super().__init__(params, strength, over_time, cautious)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add a group of parameters to decay, as ``Regularizer.add_param_group``. It may have its own ``delta``."""
        delta = check_number("delta", group.get("delta", self._default_delta), above=0.0)
        super().add_param_group({**group, "delta": delta})

    def after_step(self) -> None:
        for part in self.active_groups():
            weights = local_shards(part.params)
            shifts = huber_shifts(weights, part.lr * part.strength, part.group["delta"])
            if self.cautious:
                new = self.where_allowed(part.params, torch._foreach_sub(weights, shifts))
                torch._foreach_copy_(weights, new)
            else:
                torch._foreach_sub_(weights, shifts)

    def penalty(self) -> Tensor:
        return sum((Huber(g["delta"]).value(g["params"]) * g["strength"] for g in self.groups), super().penalty())

    def penalty_gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        tensor = self._bound.tensor if self.is_attached else lambda w: w
        deltas = {id(tensor(w)): group["delta"] for group in self.groups for w in group["params"]}
        return [Huber(deltas[id(w)]).gradient([w])[0] for w in params]


def huber_shifts(weights: Sequence[Tensor], threshold: float | Tensor, delta: float) -> list[Tensor]:
    """Return what the proximal step on ``t`` times the Huber penalty subtracts from each weight, in its type.

    It is ``w t / (1 + t)``, limited to ``[-t delta, t delta]``.

    Args:
        weights: tensors of any shapes.
        threshold: t >= 0: a number, a scalar tensor, or for a stack a number per run, (runs, 1, 1).
        delta: the threshold of the penalty, > 0.
    """
    if isinstance(threshold, Tensor):
        t = threshold.clamp(max=torch.finfo(threshold.dtype).max / 4)
        bound = t * delta
        return [torch.clamp(w * (t / (1 + t)), -bound, bound).to(w.dtype) for w in weights]
    share = 1 / (1 + 1 / threshold) if threshold > 0 else 0.0
    shifts = scaled(weights, share)
    bounds = [min(threshold * delta, torch.finfo(w.dtype).max) for w in weights]
    torch._foreach_clamp_max_(shifts, bounds)
    torch._foreach_clamp_min_(shifts, [-bound for bound in bounds])
    return shifts
