"""Comparison of the loss gradient with the penalty gradient, at a step that is logged (P3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wdlab.metrics.norms import as_rows, each_dot, each_norm
from wdlab.regularizers import Regularizer
from wdlab.regularizers.views import GradientSection, effective_strength


@dataclass(frozen=True)
class MethodOfRuns:
    """A method together with the consecutive runs that it acts on.

    Args:
        method: the method, attached to its optimizer or bound to a view of the runs.
        rows: the positions of the runs among all runs.
        params: the tensors that the method acts on in place of the model's parameters, in the order of the model.
    """

    method: Regularizer
    rows: slice
    params: Sequence[Tensor]


class _Sums(NamedTuple):
    """Sums over the parameters of a section (see ``regularizers.views.GradientSection``), each float64 (runs,).

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
        regularizer: the method, attached to its optimizer or bound to a view of several runs.
        gradient_norms: ``|g|``, float64 (runs,), of every parameter that has a gradient, by the parameter's id.
        stacked: True if the method acts on tensors of several runs, (runs, ...).
        scratch: as in ``norms.each_dot``.
    """

    def __init__(
        self,
        regularizer: Regularizer,
        gradient_norms: Mapping[int, Tensor],
        stacked: bool = False,
        scratch: Tensor | None = None,
    ) -> None:
        self._regularizer = regularizer
        sections = regularizer.sections()
        self._sums = [_sums(regularizer, section, gradient_norms, stacked, scratch) for section in sections]

    def values(self) -> dict[str, Tensor]:
        """Return the metrics of the step, after the step, (runs,) each.

        ``gradient/penalty_norm`` is ``|r|`` with the strength that the step used. ``gradient/coherence`` is the cosine
        between ``g`` and ``g + r`` (P3, our reading): 1 without a penalty, 0 if ``g`` or ``g + r`` is zero. The method
        and each schedule in its ``over_time`` add their own metrics, for example ``gradient/gate``.
        """
        if self._sums:
            values = self._norm_and_coherence()
        else:
            zero = torch.zeros(1, dtype=torch.float64, device=self._regularizer.params[0].device)
            values = {"gradient/penalty_norm": zero, "gradient/coherence": zero}
        for schedule in self._regularizer.over_time:
            values |= {name: value.flatten() for name, value in schedule.metrics().items()}
        return values | {name: value.flatten() for name, value in self._regularizer.metrics().items()}

    def _norm_and_coherence(self) -> dict[str, Tensor]:
        method = self._regularizer
        loss_square = sum(sums.loss_square for sums in self._sums)
        product = penalty_square = torch.zeros_like(loss_square)
        for section, _, own_product, own_square in self._sums:
            given = section.ascent_sign * section.strength
            group = section.optimizer_group
            strength = effective_strength(given, section.over_time, method.updates - 1, group, method.clock)
            strength = strength.flatten().double() if isinstance(strength, Tensor) else strength
            product = product + strength * own_product
            penalty_square = penalty_square + strength**2 * own_square
        coherence = cosine_with_sum(loss_square, product, penalty_square)
        return {"gradient/penalty_norm": penalty_square.sqrt(), "gradient/coherence": coherence}


def _sums(
    regularizer: Regularizer,
    section: GradientSection,
    gradient_norms: Mapping[int, Tensor],
    stacked: bool,
    scratch: Tensor | None,
) -> _Sums:
    params, strength = section.params, section.strength
    loss_square = torch.stack([gradient_norms[id(p)] for p in params], dim=1).square().sum(1)
    zero = torch.zeros_like(loss_square)
    if not isinstance(strength, Tensor) and strength == 0:
        return _Sums(section, loss_square, zero, zero)
    gradients = as_rows([p.grad for p in params], stacked, params)
    slopes = as_rows(regularizer.penalty_gradient(params), stacked, params)
    product, square = each_dot(gradients, slopes, scratch).sum(1), each_norm(slopes, stacked).square().sum(1)
    if stacked:  # a run without decay: also where the slope is infinite
        product, square = (torch.where(strength.flatten() == 0, zero, sums) for sums in (product, square))
    return _Sums(section, loss_square, product, square)


def cosine_with_sum(square: Tensor, product: Tensor, other_square: Tensor) -> Tensor:
    """Return the cosine between ``g`` and ``g + r``; 0 if ``g`` or ``g + r`` is zero. All tensors have one shape.

    Args:
        square: ``|g|^2``.
        product: ``g . r``.
        other_square: ``|r|^2``.
    """
    sum_square = (square + 2 * product + other_square).clamp(min=0)
    length = (square * sum_square).sqrt()
    return torch.where(length == 0, 0.0, ((square + product) / length).clamp(-1, 1))
