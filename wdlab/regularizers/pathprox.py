"""PathProx (P1): a proximal step on the path-norm, the penalty that weight decay on a ReLU network amounts to.

Yang et al. 2022, arXiv 2210.03069.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from wdlab.homogeneous import (
    Pair,
    column_norms,
    homogeneous_pairs,
    output_norms,
    pairs_form_a_chain,
    row_norms,
    unit_paths,
    weights,
)
from wdlab.regularizers.base import Regularizer
from wdlab.regularizers.checks import check_strength
from wdlab.regularizers.description import Row
from wdlab.regularizers.in_loss import ascent_sign
from wdlab.regularizers.over_time import OverTime
from wdlab.regularizers.penalties import HalfSquare
from wdlab.tensors import compiled as compile_once
from wdlab.tensors import is_sharded

SMALLEST_NORM = 1e-6  # input norms and path-norms are clipped below at this before any division, as released


class Factors(NamedTuple):
    """What one step multiplies a pair by. Shapes: (units,), (units,), (units,), ()."""

    first_weight: Tensor  # each row of the first layer
    first_bias: Tensor
    second_weight: Tensor  # each column of the second layer
    second_bias: Tensor | float  # a number where it is 1 for all


class PathProx(Regularizer):
    """``R(w) = sum over homogeneous units |w|_2 |v|_2``, by a proximal step.  [grade A: released code, step by step]

    Yang et al. 2022, arXiv 2210.03069 (P1). After every optimizer step on the loss: (1) balance the pairs' path-norms
    to their geometric mean, which does not change the network as long as each pair's output reaches the next pair
    through ReLU, pooling and the like alone; (2) normalize every unit's input weights to length 1, dividing its bias
    by the same norm; (3) shrink every unit's output weights ``v`` by the prox ``v max(0, 1 - t/|v|)`` with ``t = lr *
    s``. Units whose path is worth less than ``t`` become exactly zero. Biases are scaled, never decayed. The released
    code divides by ``max(|v|, 1e-6)``, so that thresholds below 1e-6 zero nothing and a learning rate that falls to 0
    brings every unit back in its last steps; here (3) is the prox at every threshold, and from 1e-6 on the same.

    The learning rate multiplies the decay (it is part of the threshold). At strength 0, also one that is 0 for a time
    (``over_time``), and at learning rate 0 the method is off altogether: its normalization alone would change the
    function. A pair without gradients in a step (frozen, or not used) is left alone in it, and nothing is balanced
    then. Sharded weights are refused: a unit's norm takes all of its row.

    Args:
        pairs: disjoint ``(first, second)`` modules with ``weight`` (out, in, ...) and optional ``bias``; row i of
            ``first`` and column i of ``second`` belong to unit i. ``homogeneous_pairs(model)`` finds them.
        strength: s, finite and >= 0.
        other: weights outside the pairs; they get the ordinary ``s/2 |w|^2`` in the loss gradient.
        balance: whether to do (1). ``for_model`` checks that it is allowed; here it is the caller's word.
        regularize_bias: count a unit's bias to its input weights, in the norm and so in the penalty. Nothing is
            balanced then, whatever ``balance`` says, as released.
        compiled: do the arithmetic by ``torch.compile`` (needs a C++ compiler on the CPU).
        over_time: as in :class:`wdlab.regularizers.Regularizer`.

    Raises:
        ValueError: for no pairs, a module in two pairs, pairs whose shapes do not meet, a bad strength; at ``attach``
            for sharded weights.
    """

    def __init__(
        self,
        pairs: Iterable[Pair],
        strength: float,
        other: Iterable[Tensor] = (),
        balance: bool = True,
        regularize_bias: bool = False,
        compiled: bool = False,
        over_time: OverTime | Iterable[OverTime] | None = None,
    ) -> None:
        self.pairs = [(first, second) for first, second in pairs]
        self.balance = balance and not regularize_bias
        self.regularize_bias = regularize_bias
        self.compiled = compiled
        check_strength(strength)
        check_pairs(self.pairs)
        super().__init__([*(layer.weight for pair in self.pairs for layer in pair), *other], strength, over_time)

    @classmethod
    def for_model(cls, model: nn.Module, strength: float, scope: str = "weights", **options: Any) -> Self:
        """PathProx on ``homogeneous_pairs(model)``, with the model's remaining weights as ``other``.

        Frozen weights are left out, and a pair with one of them.

        Raises:
            ValueError: for a model without pairs, or one whose pairs cannot be balanced without changing its function;
                for sharded weights.
        """
        if scope != "weights":
            raise ValueError(f"scope={scope!r}: must be weights (regularize_bias is what PathProx has for biases)")
        check_unsharded(model.parameters())  # said here too: in the layers of a sharded model no pairs are found
        pairs = [p for p in homogeneous_pairs(model) if all(layer.weight.requires_grad for layer in p)]
        if not pairs:
            raise ValueError(f"{type(model).__name__} has no pair Linear-ReLU-Linear or Conv-ReLU-Conv for PathProx")
        paired = {id(layer.weight) for pair in pairs for layer in pair}
        other = [w for w in weights(model) if w.requires_grad and id(w) not in paired]
        method = cls(pairs, strength, other, **options)
        if method.balance and not pairs_form_a_chain(model):
            raise ValueError(
                f"balance=True: would change the function of {type(model).__name__}, whose pairs do not follow each "
                "other through ReLU, pooling and flattening alone; use balance=false"
            )
        return method._made_for(model)

    @property
    def _paired(self) -> list[Tensor]:
        """The weights of the pairs, the first parameters there are."""
        return self.groups[0]["params"][: 2 * len(self.pairs)]

    def _is_paired(self, weight: Tensor) -> bool:
        return any(weight is p for p in self._paired)

    @property
    def other(self) -> list[Tensor]:
        """The weights outside the pairs."""
        return self._unpaired(self.params)

    def _unpaired(self, params: Iterable[Tensor]) -> list[Tensor]:
        paired = {id(p) for p in self._paired}
        return [p for p in params if id(p) not in paired]

    def _rows(self) -> list[Row]:
        return [row._replace(note="path-norm") if self._is_paired(row.tensor) else row for row in super()._rows()]

    def _replaced(self) -> list[str]:
        layers = zip((layer for pair in self.pairs for layer in pair), self._paired, strict=True)
        return super()._replaced() or [
            f"the weight of a {type(layer).__name__}" for layer, p in layers if layer.weight is not p
        ]

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        check_unsharded(self.params)

    def after_backward(self) -> None:
        for part in self.active_groups():
            others = self._unpaired(part.params)
            if others:
                self.add_to_gradients(others, [p.detach() for p in others], ascent_sign(part) * part.strength)

    def after_step(self) -> None:
        rates = {id(p): part.lr * part.strength for part in self.active_groups() for p in part.params}
        rates = {key: t for key, t in rates.items() if isinstance(t, Tensor) or t > 0}
        live = [pair for pair in self.pairs if all(id(layer.weight) in rates for layer in pair)]
        if live:
            tensors = [_tensors(pair) for pair in live]
            balance = self.balance and len(live) == len(self.pairs)
            ts = [rates[id(second.weight)] for _, second in live]
            if self.compiled:
                ts = [t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64) for t in ts]
                compile_once(prox_step_)(tensors, ts, balance, self.regularize_bias)
            else:
                prox_step_(tensors, ts, balance, self.regularize_bias)

    def penalty(self) -> Tensor:
        paths = unit_paths(self.pairs)
        if self.regularize_bias:
            paths = [_row_norms(first.weight, first.bias, True) * output_norms(second) for first, second in self.pairs]
        total = torch.stack([path.sum() for path in paths]).sum() * self.strength
        for group in self.groups:
            others = self._unpaired(group["params"])
            if others:
                total = total + HalfSquare().value(others) * group["strength"]
        return total

    @torch.no_grad()
    def penalty_gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        slopes = {}
        for first, second in self.pairs:
            row = _row_norms(first.weight, first.bias, self.regularize_bias).clamp(min=SMALLEST_NORM)
            column = output_norms(second).clamp(min=SMALLEST_NORM)
            slopes[id(first.weight)] = first.weight * _along_rows(column / row, first.weight)
            slopes[id(second.weight)] = second.weight * _along_columns(row / column, second.weight)
        return [slopes[id(p)] if id(p) in slopes else p.detach() for p in params]


LayerTensors = tuple[Tensor, Tensor | None, Tensor, Tensor | None]  # weight and bias of the first and the second layer


def _tensors(pair: Pair) -> LayerTensors:
    return tuple(None if t is None else t.detach() for layer in pair for t in (layer.weight, layer.bias))


def prox_step_(
    pairs: Sequence[LayerTensors],
    thresholds: Sequence[float | Tensor],
    balance: bool = True,
    regularize_bias: bool = False,
) -> None:
    """One step of the method in place: balance, normalize, prox (P1, steps 2 to 4), by one multiplication per tensor.

    Args:
        pairs: per pair, weight and bias (or None) of the first and of the second layer.
        thresholds: per pair, ``t = lr * s``; where one is a tensor that is 0, its pair is left alone.
        balance, regularize_bias: as in :class:`PathProx`.
    """
    rows = [_row_norms(weight, bias, regularize_bias) for weight, bias, _, _ in pairs]
    columns = [column_norms(weight) for _, _, weight, _ in pairs]
    all_factors = prox_factors(rows, columns, thresholds, balance)
    for pair, factors, threshold in zip(pairs, all_factors, thresholds, strict=True):
        if isinstance(threshold, Tensor):
            factors = Factors(*(torch.where(threshold > 0, f, 1.0) if isinstance(f, Tensor) else f for f in factors))
        if regularize_bias:
            factors = factors._replace(first_bias=factors.first_weight)
        multiply_(pair, factors)


def _row_norms(weight: Tensor, bias: Tensor | None, with_bias: bool) -> Tensor:
    norms = row_norms(weight.detach())
    return torch.hypot(norms, bias.detach().to(norms.dtype)) if with_bias and bias is not None else norms


def prox_factors(
    rows: list[Tensor], columns: list[Tensor], thresholds: list[float | Tensor], balance: bool = True
) -> list[Factors]:
    """What a PathProx step multiplies each pair by, from the norms alone (P1, steps 2 to 4 in one go).

    Args:
        rows: per pair, input norms ``|w|`` after the gradient step, shape (units,).
        columns: per pair, output norms ``|v|``, shape (units,).
        thresholds: per pair, ``t = lr * s``.
        balance: scale the pairs to equal path-norm first.

    Returns:
        One :class:`Factors` per pair. All of it is tensor arithmetic without branches on values.
    """
    ranges = [torch.finfo(r.dtype) for r in rows]
    largest = min(r.max for r in ranges)  # where a norm or a product has left the range of its type
    smallest = max(r.tiny for r in ranges)
    rows = [r.clamp(SMALLEST_NORM, largest) for r in rows]
    columns = [c.clamp(max=largest) for c in columns]
    factors = []
    before: Tensor | float = 1.0  # what the pairs so far have multiplied their output by
    if balance:
        path_norms = torch.stack([(r * c).sum() for r, c in zip(rows, columns, strict=True)])
        path_norms = path_norms.clamp(SMALLEST_NORM, largest)
        towards_mean = (path_norms.log().mean().exp() / path_norms).clamp(max=largest)
    for k, (row, column, threshold) in enumerate(zip(rows, columns, thresholds, strict=True)):
        gain = towards_mean[k] if balance else 1.0
        after = (before * gain).clamp(max=largest) if balance else before
        shrunk = (1 - threshold / (column * gain).clamp(min=smallest)).clamp(min=0)
        factors.append(Factors(1 / row, before / row, gain * shrunk, after))
        before = after
    return factors


def multiply_(pair: LayerTensors, factors: Factors) -> None:
    """Multiply a pair's weights and biases in place, rows of the first layer and columns of the second."""
    first_weight, first_bias, second_weight, second_bias = pair
    first_weight.mul_(_along_rows(factors.first_weight, first_weight))
    second_weight.mul_(_along_columns(factors.second_weight, second_weight))
    if first_bias is not None:
        first_bias.mul_(factors.first_bias)
    if second_bias is not None:
        second_bias.mul_(factors.second_bias)


def _along_rows(units: Tensor, weight: Tensor) -> Tensor:
    return units.reshape(-1, *[1] * (weight.dim() - 1))


def _along_columns(units: Tensor, weight: Tensor) -> Tensor:
    return units.reshape(1, -1, *[1] * (weight.dim() - 2))


def check_unsharded(params: Iterable[Tensor]) -> None:
    """Raise a ValueError if a weight is sharded."""
    if any(is_sharded(p) for p in params):
        raise ValueError("PathProx: cannot work on sharded weights, since the norm of a unit takes all of its row")


def check_pairs(pairs: list[Pair]) -> None:
    """Raise a ValueError unless the pairs are there, disjoint, and meet in the number of units."""
    if not pairs:
        raise ValueError("pairs: got none; PathProx needs at least one (first, second) pair of layers")
    layers = [layer for pair in pairs for layer in pair]
    if len({id(layer) for layer in layers}) != len(layers):
        raise ValueError("pairs: a layer appears more than once; pairs must be disjoint")
    for first, second in pairs:
        if first.weight.shape[0] != second.weight.shape[1]:
            raise ValueError(
                f"pairs: {first} has {first.weight.shape[0]} outputs, {second} reads {second.weight.shape[1]}"
            )
