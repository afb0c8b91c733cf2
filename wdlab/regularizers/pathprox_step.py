"""The arithmetic of a PathProx step (P1, Yang et al. 2022, arXiv 2210.03069) as functions of tensors.

The same code serves one network and a stack of runs, whose tensors have the runs as their first dimension. ``...`` in a
shape stands for that dimension, and for nothing in the tensors of one network.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from wdlab.homogeneous import Pair, column_norms, row_norms
from wdlab.tensors import is_per_run

SMALLEST_NORM = 1e-6  # smaller input norms and path-norms count as this in divisions, as in the released code


class PairFactors(NamedTuple):
    """The factors by which one PathProx step multiplies the weights and biases of a pair of layers."""

    first_weight: Tensor  # for each row of the first layer's weight, (..., units)
    first_bias: Tensor  # for each element of the first layer's bias, (..., units)
    second_weight: Tensor  # for each column of the second layer's weight, (..., units)
    second_bias: Tensor | None  # for the second layer's whole bias, (..., 1); None without balancing


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
            For a stack the weights have the shape (runs, out, in) and the biases (runs, 1, out).
        thresholds: per pair, ``t = lr * s``: a number, a scalar tensor, or for a stack a number per run, (runs,). A
            pair whose threshold is a tensor is not changed where it is 0.
        balance: as in :class:`PathProx`.
        regularize_bias: as in :class:`PathProx`.
    """
    stacked = is_per_run(thresholds[0])
    if stacked:
        pairs = [tuple(t if t is None or k % 2 == 0 else t[:, 0] for k, t in enumerate(pair)) for pair in pairs]
    rows = [row_norms_with_bias(weight, bias, regularize_bias, stacked) for weight, bias, _, _ in pairs]
    columns = [column_norms(weight, stacked) for _, _, weight, _ in pairs]
    for pair, factors in zip(pairs, prox_factors(rows, columns, thresholds, balance), strict=True):
        multiply_pair_(pair, factors._replace(first_bias=factors.first_weight) if regularize_bias else factors)


def row_norms_with_bias(weight: Tensor, bias: Tensor | None, with_bias: bool, stacked: bool = False) -> Tensor:
    """Return the norm of each unit's input weights, shape (..., units).

    Args:
        weight: the layer's weight, one row per unit.
        bias: the layer's bias, shape (..., units), or None.
        with_bias: True to count a unit's bias among its input weights.
        stacked: True if the first dimension is the runs of a stack.
    """
    norms = row_norms(weight.detach(), stacked)
    return torch.hypot(norms, bias.detach().to(norms.dtype)) if with_bias and bias is not None else norms


def prox_factors(
    rows: list[Tensor], columns: list[Tensor], thresholds: Sequence[float | Tensor], balance: bool = True
) -> list[PairFactors]:
    """Return the factors of a PathProx step on each pair (P1, steps 2 to 4 in one), computed from norms alone.

    The computation has no branches on the values of tensors, so it can be compiled. All pairs are computed at once.

    Args:
        rows: per pair, input norms ``|w|`` after the gradient step, shape (..., units).
        columns: per pair, output norms ``|v|`` after the gradient step, shape (..., units).
        thresholds: per pair, ``t = lr * s``, see :func:`prox_step_`.
        balance: True to scale the pairs to equal path-norms first, unless a pair is dead (path-norm at most 1e-6).

    Returns:
        One :class:`PairFactors` per pair.
    """
    ranges = [torch.finfo(r.dtype) for r in rows]
    largest = min(r.max for r in ranges)  # replaces norms and products that exceed the range of their type
    smallest = max(r.tiny for r in ranges)
    units = [r.shape[-1] for r in rows]
    row = _all_pairs(rows).clamp(SMALLEST_NORM, largest)
    column = _all_pairs(columns).clamp(max=largest)
    threshold = _joint(thresholds, row)
    gain: Tensor | float = 1.0  # factor on the path-norm of a pair
    first_weight = first_bias = row.reciprocal()
    second_bias = None
    if balance:
        path_norms = (row * column).sum(-1, keepdim=True).clamp(SMALLEST_NORM, largest)
        gain = (path_norms.log().mean(-2, keepdim=True).exp() / path_norms).clamp(max=largest)
        # No factor makes the path-norm of a dead pair equal to the others: such a network would overflow.
        gain = torch.where((path_norms > SMALLEST_NORM).all(-2, keepdim=True), gain, 1.0)
        # the factor by which the pairs so far scale the input of the next pair
        second_bias = gain.cumprod(-2).clamp(max=largest)
        first_bias = first_weight * pad(second_bias[..., :-1, :], (0, 0, 1, 0), value=1.0)
    second_weight = (gain - threshold / column.clamp(min=smallest)).clamp(min=0)  # gain (1 - t / (gain |v|))
    factors = PairFactors(first_weight, first_bias, second_weight, second_bias)
    if isinstance(threshold, Tensor):
        factors = PairFactors(*(f if f is None else torch.where(threshold > 0, f, 1.0) for f in factors))
    return [
        PairFactors(*(f if f is None else f[..., k, : min(count, f.shape[-1])] for f in factors))
        for k, count in enumerate(units)
    ]


def _all_pairs(norms: list[Tensor]) -> Tensor:
    """Return the norms of all pairs, (..., pairs, units); pairs with fewer units than others are filled with zeros."""
    most = max(n.shape[-1] for n in norms)
    return torch.stack([n if n.shape[-1] == most else pad(n, (0, most - n.shape[-1])) for n in norms], -2)


def _joint(thresholds: Sequence[float | Tensor], like: Tensor) -> float | Tensor:
    """Return the thresholds of all pairs in a form that broadcasts with ``like``, (..., pairs, units).

    It is a number or a scalar tensor if all pairs have the same.
    """
    first = thresholds[0]
    if all(t is first or (not isinstance(t, Tensor) and t == first) for t in thresholds):
        return first[..., None, None] if is_per_run(first) else first
    tensors = [t.to(like) if isinstance(t, Tensor) else like.new_full((), t) for t in thresholds]
    return torch.stack(tensors, -1)[..., None]


def multiply_pair_(pair: LayerTensors, factors: PairFactors) -> None:
    """Multiply the weights and biases of a pair by ``factors`` in place.

    The rows and the bias of the first layer, the columns of the second layer and its bias have their own factors.
    """
    first_weight, first_bias, second_weight, second_bias = pair
    first_weight.mul_(along_rows(factors.first_weight, first_weight))
    second_weight.mul_(along_columns(factors.second_weight, second_weight))
    if first_bias is not None:
        first_bias.mul_(factors.first_bias)
    if second_bias is not None and factors.second_bias is not None:
        second_bias.mul_(factors.second_bias)


def along_rows(units: Tensor, weight: Tensor) -> Tensor:
    """Return ``units``, one value per row of ``weight``, as (..., units, 1, ...) to multiply the rows."""
    return units.reshape(*units.shape, *[1] * (weight.dim() - units.dim()))


def along_columns(units: Tensor, weight: Tensor) -> Tensor:
    """Return ``units``, one value per column of ``weight``, as (..., 1, units, 1, ...) to multiply the columns."""
    return along_rows(units.unsqueeze(-2), weight)
