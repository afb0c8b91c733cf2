"""PathProx (P1): a proximal step on the path-norm, the penalty that weight decay on a ReLU network amounts to.

Yang et al. 2022, arXiv 2210.03069.
"""

from collections.abc import Iterable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from wdlab.homogeneous import (
    Pair,
    homogeneous_pairs,
    input_norms,
    output_norms,
    pairs_form_a_chain,
    unit_paths,
    weights,
)
from wdlab.regularizers.base import Regularizer, check_strength
from wdlab.regularizers.l2 import add_l2_gradient, half_square

SMALLEST_NORM = 1e-6  # norms are clipped below at this before any division, as released


class Factors(NamedTuple):
    """What one step multiplies a pair by. Shapes: (units,), (units,), (units,), ()."""

    first_weight: Tensor  # each row of the first layer
    first_bias: Tensor
    second_weight: Tensor  # each column of the second layer
    second_bias: Tensor | float


class PathProx(Regularizer):
    """``R(w) = sum over homogeneous units |w|_2 |v|_2``, by a proximal step.  [grade A: released code, step by step]

    After every optimizer step on the loss: (1) balance the pairs' path-norms to their geometric mean, which does not
    change the network as long as each pair's output reaches the next pair through ReLU, pooling and the like alone;
    (2) normalize every unit's input weights to length 1, dividing its bias by the same norm; (3) shrink every unit's
    output weights ``v`` by the prox ``v max(0, 1 - t/|v|)`` with ``t = lr * s``. Units whose path is worth less than
    ``t`` become exactly zero. Biases are scaled, never decayed.

    The learning rate multiplies the decay (it is part of the threshold). At strength 0 the method is off altogether:
    its normalization alone would change the function. A pair without gradients in a step (frozen, or not used) is left
    alone in it, and nothing is balanced then.

    Args:
        pairs: disjoint ``(first, second)`` modules with ``weight`` (out, in, ...) and optional ``bias``; row i of
            ``first`` and column i of ``second`` belong to unit i. ``homogeneous_pairs(model)`` finds them.
        strength: s, finite and >= 0.
        other: weights outside the pairs; they get the ordinary ``s/2 |w|^2`` in the loss gradient.
        balance: whether to do (1). ``for_model`` checks that it is allowed; here it is the caller's word.

    Raises:
        ValueError: for no pairs, a module in two pairs, pairs whose shapes do not meet, a bad strength.
    """

    def __init__(
        self, pairs: Iterable[Pair], strength: float, other: Iterable[Tensor] = (), balance: bool = True
    ) -> None:
        self.pairs = [(first, second) for first, second in pairs]
        self.other = list(other)
        self.balance = balance
        check_strength(strength)
        check_pairs(self.pairs)
        paired = [p for first, second in self.pairs for p in (first.weight, second.weight)]
        super().__init__(paired + self.other, strength)

    @classmethod
    def for_model(cls, model: nn.Module, strength: float, scope: str = "weights", balance: bool = True) -> Self:
        """PathProx on ``homogeneous_pairs(model)``, with the model's remaining weights as ``other``.

        Frozen weights are left out, and a pair with one of them.

        Raises:
            ValueError: for a model without pairs, or one whose pairs cannot be balanced without changing its function.
        """
        if scope != "weights":
            raise ValueError(f"scope={scope!r}: must be weights (PathProx does not decay biases)")
        pairs = [p for p in homogeneous_pairs(model) if all(layer.weight.requires_grad for layer in p)]
        if not pairs:
            raise ValueError(f"{type(model).__name__} has no pair Linear-ReLU-Linear or Conv-ReLU-Conv for PathProx")
        if balance and not pairs_form_a_chain(model):
            raise ValueError(
                f"balance=True: would change the function of {type(model).__name__}, whose pairs do not follow each "
                "other through ReLU, pooling and flattening alone; use balance=false"
            )
        paired = {id(layer.weight) for pair in pairs for layer in pair}
        other = [w for w in weights(model) if w.requires_grad and id(w) not in paired]
        return cls(pairs, strength, other, balance)

    def after_backward(self) -> None:
        if self.strength != 0:
            add_l2_gradient(self.other, self.strength)

    @torch.no_grad()
    def after_step(self) -> None:
        if self.strength == 0:
            return
        live = [pair for pair in self.pairs if all(layer.weight.grad is not None for layer in pair)]
        if not live:
            return
        thresholds = [lr * self.strength for lr in self.lr_of(second.weight for _, second in live)]
        rows = [input_norms(first) for first, _ in live]
        columns = [output_norms(second) for _, second in live]
        balance = self.balance and len(live) == len(self.pairs)
        for pair, factors in zip(live, prox_factors(rows, columns, thresholds, balance), strict=True):
            multiply(pair, factors)

    def penalty(self) -> Tensor:
        total = torch.stack([path.sum() for path in unit_paths(self.pairs)]).sum()
        if self.other:
            total = total + half_square(self.other)
        return total * self.strength


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
    rows = [r.clamp(min=SMALLEST_NORM) for r in rows]
    factors = []
    before: Tensor | float = 1.0  # what the pairs so far have multiplied their output by
    if balance:
        path_norms = torch.stack([(r * c).sum() for r, c in zip(rows, columns, strict=True)]).clamp(min=SMALLEST_NORM)
        towards_mean = path_norms.log().mean().exp() / path_norms
    for k, (row, column, threshold) in enumerate(zip(rows, columns, thresholds, strict=True)):
        gain = towards_mean[k] if balance else 1.0
        after = before * gain
        shrunk = (1 - threshold / (column * gain).clamp(min=SMALLEST_NORM)).clamp(min=0)
        factors.append(Factors(1 / row, before / row, gain * shrunk, after))
        before = after
    return factors


def multiply(pair: Pair, factors: Factors) -> None:
    """Multiply a pair's weights and biases in place, rows of the first layer and columns of the second."""
    first, second = pair
    first.weight.mul_(factors.first_weight.reshape(-1, *[1] * (first.weight.dim() - 1)))
    second.weight.mul_(factors.second_weight.reshape(1, -1, *[1] * (second.weight.dim() - 2)))
    if first.bias is not None:
        first.bias.mul_(factors.first_bias)
    if second.bias is not None:
        second.bias.mul_(factors.second_bias)


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
