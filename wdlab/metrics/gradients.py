"""The gradient of the loss against that of the penalty, at the step that is logged (P3)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wdlab.metrics.norms import each_dot, each_norm
from wdlab.regularizers import CoherenceGate, Regularizer


class _Section(NamedTuple):
    """Parameters that one strength is in force for, and sums over them: 0-dim, float64."""

    group: dict[str, Any]
    optimizer_group: dict[str, Any]
    loss_square: Tensor  # |g|^2
    product: Tensor  # g . dR/dw
    penalty_square: Tensor  # |dR/dw|^2


class PenaltyGradient:
    """The gradient of the penalty, ``r = s dR/dw``, beside that of the loss, ``g``, over a method's parameters.

    Made before the step: gradients of the loss alone are in ``p.grad``. A strength that comes from the gradients is
    known only behind it, and so are the values. Parameters without a gradient are left out, as by the methods.

    Where ``dR/dw`` has no limit (Bridge penalties with p < 1 close to zero) the methods bound it by the largest number
    of its type; a norm that overflows on it is infinite here, and null in the records. At zero it is 0.

    Args:
        regularizer: attached to its optimizer.
        gradient_norms: ``|g|`` of every parameter that has a gradient, by its id; 0-dim float64.
    """

    def __init__(self, regularizer: Regularizer, gradient_norms: Mapping[int, Tensor]) -> None:
        self._regularizer = regularizer
        self._sections = [
            _section(regularizer, group, optimizer_group, params, gradient_norms)
            for group, optimizer_group, params in _by_strength(regularizer)
        ]

    def values(self) -> dict[str, Tensor]:
        """Behind the step.

        ``gradient/penalty_norm`` is ``|r|`` with the strength that was in force. ``gradient/coherence`` is the cosine
        between ``g`` and ``g + r`` (P3, our reading): 1 without a penalty, 0 where either is zero.
        ``gradient/gate`` is the statistic of the method's gate, if it has one.
        """
        if self._sections:
            values = self._norm_and_coherence()
        else:
            zero = torch.zeros((), dtype=torch.float64, device=self._regularizer.params[0].device)
            values = {"gradient/penalty_norm": zero, "gradient/coherence": zero}
        for schedule in self._regularizer.over_time:
            if isinstance(schedule, CoherenceGate) and schedule.statistic is not None:
                values["gradient/gate"] = schedule.statistic
        return values

    def _norm_and_coherence(self) -> dict[str, Tensor]:
        loss_square = sum(section.loss_square for section in self._sections)
        product = penalty_square = torch.zeros_like(loss_square)
        for section in self._sections:
            strength = self._strength_in_force(section)
            product = product + strength * section.product
            penalty_square = penalty_square + strength**2 * section.penalty_square
        coherence = cosine_with_sum(loss_square, product, penalty_square)
        return {"gradient/penalty_norm": penalty_square.sqrt(), "gradient/coherence": coherence}

    def _strength_in_force(self, section: _Section) -> float | Tensor:
        """In the step just made; negative where the optimizer maximizes, and the penalty is subtracted."""
        step = self._regularizer.updates - 1
        strength = -section.group["strength"] if section.optimizer_group.get("maximize") else section.group["strength"]
        for schedule in self._regularizer.over_time:
            strength = strength * schedule.factor(step, section.optimizer_group)
        return strength


def _by_strength(regularizer: Regularizer) -> list[tuple[dict[str, Any], dict[str, Any], list[Tensor]]]:
    """The method's parameters with a gradient, by its own group and that of the optimizer."""
    homes = {id(p): group for group in regularizer.optimizer.param_groups for p in group["params"]}
    found = []
    for group in regularizer.groups:
        by_home: dict[int, list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is not None:
                by_home.setdefault(id(homes[id(p)]), []).append(p)
        found += [(group, homes[id(params[0])], params) for params in by_home.values()]
    return found


def _section(
    regularizer: Regularizer,
    group: dict[str, Any],
    optimizer_group: dict[str, Any],
    params: list[Tensor],
    gradient_norms: Mapping[int, Tensor],
) -> _Section:
    loss_square = torch.stack([gradient_norms[id(p)] for p in params]).square().sum()
    if group["strength"] == 0:
        return _Section(
            group, optimizer_group, loss_square, torch.zeros_like(loss_square), torch.zeros_like(loss_square)
        )
    slopes = regularizer.penalty_gradient(params)
    product = each_dot([p.grad for p in params], slopes).sum()
    return _Section(group, optimizer_group, loss_square, product, each_norm(slopes).square().sum())


def cosine_with_sum(square: Tensor, product: Tensor, other_square: Tensor) -> Tensor:
    """Cosine between ``g`` and ``g + r`` from ``|g|^2``, ``g . r`` and ``|r|^2``; 0 if either is zero. All 0-dim."""
    sum_square = (square + 2 * product + other_square).clamp(min=0)
    length = (square * sum_square).sqrt()
    return torch.where(length == 0, 0.0, ((square + product) / length).clamp(-1, 1))
