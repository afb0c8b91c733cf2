"""The arithmetic of a PathProx step (P1, Yang et al. 2022, arXiv 2210.03069) as functions of tensors."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wdlab.homogeneous import Pair, column_norms, row_norms

SMALLEST_NORM = 1e-6  # smaller input norms and path-norms count as this in divisions, as in the released code


class PairFactors(NamedTuple):
    """The factors by which one PathProx step multiplies the weights and biases of a pair of layers."""

    first_weight: Tensor  # for each row of the first layer's weight, (units,)
    first_bias: Tensor  # for each element of the first layer's bias, (units,)
    second_weight: Tensor  # for each column of the second layer's weight, (units,)
    second_bias: Tensor | float  # for the second layer's whole bias, (); the number 1 without balancing


LayerTensors = tuple[Tensor, Tensor | None, Tensor, Tensor | None]  # weight and bias of the first and the second layer


def layer_tensors(pair: Pair, tensor: Callable[[Tensor], Tensor]) -> LayerTensors:
    """Return the weights and biases of a pair of layers, detached; None for a missing bias.

    Args:
        pair: the layers.
        tensor: function from a layer's parameter to the tensor to update in its place, see ``View.tensor``.
    """
    own = (t for layer in pair for t in (layer.weight, layer.bias))
    return tuple(None if t is None else tensor(t).detach() for t in own)


def prox_step_(
    pairs: Sequence[LayerTensors],
    thresholds: Sequence[float | Tensor],
    balance: bool = True,
    regularize_bias: bool = False,
) -> None:
    """Take one PathProx step on all pairs in place: balance, normalize, prox (P1, steps 2 to 4).

    The step computes the norms and then multiplies each tensor once.

    Args:
        pairs: per pair, weight and bias (or None) of the first layer, weight and bias (or None) of the second layer.
        thresholds: per pair, ``t = lr * s``. A pair whose threshold is a scalar tensor of value 0 is not changed.
        balance: as in :class:`PathProx`.
        regularize_bias: as in :class:`PathProx`.
    """
    rows = [row_norms_with_bias(weight, bias, regularize_bias) for weight, bias, _, _ in pairs]
    columns = [column_norms(weight) for _, _, weight, _ in pairs]
    all_factors = prox_factors(rows, columns, thresholds, balance)
    for pair, factors, threshold in zip(pairs, all_factors, thresholds, strict=True):
        if isinstance(threshold, Tensor):
            factors = PairFactors(
                *(torch.where(threshold > 0, f, 1.0) if isinstance(f, Tensor) else f for f in factors)
            )
        if regularize_bias:
            factors = factors._replace(first_bias=factors.first_weight)
        multiply_pair_(pair, factors)


def prox_step_of_runs_(
    pairs: Sequence[LayerTensors], thresholds: Tensor, balance: bool = True, regularize_bias: bool = False
) -> None:
    """Take one PathProx step for each run of a stack, see :func:`prox_step_`.

    Args:
        pairs: per pair, weights (runs, out, in) and biases (runs, 1, out) or None, in the order of ``LayerTensors``.
        thresholds: ``t = lr * s`` of each run, (runs,), the same for all pairs.
        balance: as in :class:`PathProx`.
        regularize_bias: as in :class:`PathProx`.
    """
    pairs = [tuple(t if t is None or k % 2 == 0 else t[:, 0] for k, t in enumerate(pair)) for pair in pairs]

    def prox_of_one_run(pairs: list[LayerTensors], threshold: Tensor) -> Tensor:
        prox_step_(pairs, [threshold] * len(pairs), balance, regularize_bias)
        return threshold

    torch.vmap(prox_of_one_run)(pairs, thresholds)


def row_norms_with_bias(weight: Tensor, bias: Tensor | None, with_bias: bool) -> Tensor:
    """Return the norm of each unit's input weights, shape (units,).

    Args:
        weight: the layer's weight, one row per unit.
        bias: the layer's bias, shape (units,), or None.
        with_bias: True to count a unit's bias among its input weights.
    """
    norms = row_norms(weight.detach())
    return torch.hypot(norms, bias.detach().to(norms.dtype)) if with_bias and bias is not None else norms


def prox_factors(
    rows: list[Tensor], columns: list[Tensor], thresholds: list[float | Tensor], balance: bool = True
) -> list[PairFactors]:
    """Return the factors of a PathProx step on each pair (P1, steps 2 to 4 in one), computed from norms alone.

    The computation has no branches on the values of tensors, so it can be compiled and mapped over runs.

    Args:
        rows: per pair, input norms ``|w|`` after the gradient step, shape (units,).
        columns: per pair, output norms ``|v|`` after the gradient step, shape (units,).
        thresholds: per pair, ``t = lr * s``.
        balance: True to scale the pairs to equal path-norms first.

    Returns:
        One :class:`PairFactors` per pair.
    """
    ranges = [torch.finfo(r.dtype) for r in rows]
    largest = min(r.max for r in ranges)  # replaces norms and products that exceed the range of their type
    smallest = max(r.tiny for r in ranges)
    rows = [r.clamp(SMALLEST_NORM, largest) for r in rows]
    columns = [c.clamp(max=largest) for c in columns]
    factors = []
    before: Tensor | float = 1.0  # factor by which the pairs so far scale the input of the next pair
    if balance:
        path_norms = torch.stack([(r * c).sum() for r, c in zip(rows, columns, strict=True)])
        path_norms = path_norms.clamp(SMALLEST_NORM, largest)
        towards_mean = (path_norms.log().mean().exp() / path_norms).clamp(max=largest)
    for k, (row, column, threshold) in enumerate(zip(rows, columns, thresholds, strict=True)):
        gain = towards_mean[k] if balance else 1.0
        after = (before * gain).clamp(max=largest) if balance else before
        shrunk = (1 - threshold / (column * gain).clamp(min=smallest)).clamp(min=0)
        factors.append(PairFactors(1 / row, before / row, gain * shrunk, after))
        before = after
    return factors


def multiply_pair_(pair: LayerTensors, factors: PairFactors) -> None:
    """Multiply the weights and biases of a pair by ``factors`` in place.

    The rows and the bias of the first layer, the columns of the second layer and its bias have their own factors.
    """
    first_weight, first_bias, second_weight, second_bias = pair
    first_weight.mul_(along_rows(factors.first_weight, first_weight))
    second_weight.mul_(along_columns(factors.second_weight, second_weight))
    if first_bias is not None:
        first_bias.mul_(factors.first_bias)
    if second_bias is not None:
        second_bias.mul_(factors.second_bias)


def along_rows(units: Tensor, weight: Tensor) -> Tensor:
    """Return ``units``, one value per row of ``weight``, in the shape (units, 1, ...) that multiplies the rows."""
    return units.reshape(-1, *[1] * (weight.dim() - 1))


def along_columns(units: Tensor, weight: Tensor) -> Tensor:
    """Return ``units``, one value per column of ``weight``, as (1, units, 1, ...), which multiplies the columns."""
    return units.reshape(1, -1, *[1] * (weight.dim() - 2))
