"""Comparison of the loss gradient with the penalty gradient, at a step that is logged (P3)."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from wdlab.metrics.norms import each_dot, each_norm
from wdlab.regularizers import Regularizer
from wdlab.regularizers.views import GradientSection, effective_strength


class _Sums(NamedTuple):
    """Sums over the parameters of a section (see ``regularizers.views.GradientSection``), each 0-dim float64.

    ``g`` is the gradient of the loss, ``dR/dw`` that of the penalty with strength 1.
    """

    section: GradientSection
    loss_square: Tensor  # |g|^2
    product: Tensor  # g . dR/dw
    penalty_square: Tensor  # |dR/dw|^2


class GradientComparison:
    """A comparison of the loss gradient ``g`` with the penalty gradient ``r = s dR/dw``, over a method's parameters.

    ``s`` is the strength. The object must be created between backward and the step, while ``p.grad`` is the gradient of
    the loss alone. ``values`` must be called after the step, since a strength that depends on the gradients is computed
    in the step. Parameters without a gradient are left out, as in the methods.

    Where ``dR/dw`` is unbounded (Bridge penalties with p < 1, close to w = 0), the methods limit it to the largest
    number of its type. If its norm then overflows, the metric is infinite here, and null in the records. At w = 0,
    ``dR/dw`` is 0.

    Args:
        regularizer: the method, attached to its optimizer.
        gradient_norms: ``|g|`` (0-dim float64) of every parameter that has a gradient, by the parameter's id.
    """

    def __init__(self, regularizer: Regularizer, gradient_norms: Mapping[int, Tensor]) -> None:
        self._regularizer = regularizer
        self._sums = [_sums(regularizer, section, gradient_norms) for section in regularizer.sections()]

    def values(self) -> dict[str, Tensor]:
        """Return the metrics of the step, after the step.

        ``gradient/penalty_norm`` is ``|r|`` with the strength that the step used. ``gradient/coherence`` is the cosine
        between ``g`` and ``g + r`` (P3, our reading): 1 without a penalty, 0 if ``g`` or ``g + r`` is zero. Each
        schedule in the method's ``over_time`` adds its own metrics, for example ``gradient/gate``.
        """
        if self._sums:
            values = self._norm_and_coherence()
        else:
            zero = torch.zeros((), dtype=torch.float64, device=self._regularizer.params[0].device)
            values = {"gradient/penalty_norm": zero, "gradient/coherence": zero}
        for schedule in self._regularizer.over_time:
            values |= schedule.metrics()
        return values

    def _norm_and_coherence(self) -> dict[str, Tensor]:
        method = self._regularizer
        loss_square = sum(sums.loss_square for sums in self._sums)
        product = penalty_square = torch.zeros_like(loss_square)
        for section, _, own_product, own_square in self._sums:
            given = section.ascent_sign * section.strength
            group = section.optimizer_group
            strength = effective_strength(given, method.over_time, method.updates - 1, group, method.clock)
            product = product + strength * own_product
            penalty_square = penalty_square + strength**2 * own_square
        coherence = cosine_with_sum(loss_square, product, penalty_square)
        return {"gradient/penalty_norm": penalty_square.sqrt(), "gradient/coherence": coherence}


def _sums(regularizer: Regularizer, section: GradientSection, gradient_norms: Mapping[int, Tensor]) -> _Sums:
    loss_square = torch.stack([gradient_norms[id(p)] for p in section.params]).square().sum()
    if section.group["strength"] == 0:
        zero = torch.zeros_like(loss_square)
        return _Sums(section, loss_square, zero, zero)
    slopes = regularizer.penalty_gradient(section.params)
    product = each_dot([p.grad for p in section.params], slopes).sum()
    return _Sums(section, loss_square, product, each_norm(slopes).square().sum())


def cosine_with_sum(square: Tensor, product: Tensor, other_square: Tensor) -> Tensor:
    """Return the cosine between ``g`` and ``g + r``, 0-dim; 0 if ``g`` or ``g + r`` is zero.

    Args:
        square: ``|g|^2``, 0-dim.
        product: ``g . r``, 0-dim.
        other_square: ``|r|^2``, 0-dim.
    """
    sum_square = (square + 2 * product + other_square).clamp(min=0)
    length = (square * sum_square).sqrt()
    return torch.where(length == 0, 0.0, ((square + product) / length).clamp(-1, 1))
