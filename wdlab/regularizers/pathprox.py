"""PathProx (P1): a proximal step on the path-norm, the penalty that weight decay on a ReLU network amounts to.

Yang et al. 2022, arXiv 2210.03069.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from wdlab.homogeneous import Pair, homogeneous_pairs, output_norms, pairs_form_a_chain, unit_path_norms, weights
from wdlab.regularizers.base import Regularizer, Schedules
from wdlab.regularizers.checks import check_strength
from wdlab.regularizers.description import Row
from wdlab.regularizers.in_loss import ascent_sign
from wdlab.regularizers.pathprox_step import (
    SMALLEST_NORM,
    along_columns,
    along_rows,
    layer_tensors,
    prox_step_,
    prox_step_of_runs_,
    row_norms_with_bias,
)
from wdlab.regularizers.penalties import HalfSquare
from wdlab.tensors import compiled as compile_once
from wdlab.tensors import is_per_run, is_sharded


class PathProx(Regularizer):
    """``R(w) = sum over homogeneous units |w|_2 |v|_2``, by a proximal step.

    [grade A: released code, step by step]

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
        balance: whether to do (1). ``for_model`` checks that it is allowed; the class itself does not.
        regularize_bias: count a unit's bias to its input weights, in the norm and so in the penalty. Nothing is
            balanced then, whatever ``balance`` says, as released.
        compiled: do the arithmetic by ``torch.compile`` (needs a C++ compiler on the CPU).
        over_time: as in :class:`wdlab.regularizers.Regularizer`.

    Raises:
        ValueError: for no pairs, a module in two pairs, pairs whose shapes do not meet, a bad strength; at ``attach``
            for sharded weights.
    """

    stackable = True

    def __init__(
        self,
        pairs: Iterable[Pair],
        strength: float,
        other: Iterable[Tensor] = (),
        balance: bool = True,
        regularize_bias: bool = False,
        compiled: bool = False,
        over_time: Schedules = None,
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
        """Return PathProx on ``homogeneous_pairs(model)``, with the model's remaining weights as ``other``.

        Frozen weights are left out, and a pair with one of them.

        Raises:
            ValueError: for a model without pairs, or one whose pairs cannot be balanced without changing its function;
                for sharded weights.
        """
        if scope != "weights":
            raise ValueError(f"scope={scope!r}: must be weights (regularize_bias is what PathProx has for biases)")
        check_unsharded(model.parameters())  # before the search, since no pairs are found in a sharded model
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
        return method._placed_in(model)

    @property
    def _paired(self) -> list[Tensor]:
        """The weights of the pairs, which are the first parameters."""
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
        paired = {id(self._bound.tensor(p)) for p in self._paired}
        for part in self.active_groups():
            others = [p for p in part.params if id(p) not in paired]
            if others:
                self.add_to_gradients(others, [p.detach() for p in others], ascent_sign(part) * part.strength)

    def after_step(self) -> None:
        tensor = self._bound.tensor
        rates: dict[int, float | Tensor] = {}
        for part in self.active_groups():
            rate = part.lr * part.strength
            if isinstance(rate, Tensor) or rate > 0:
                rates |= dict.fromkeys(map(id, part.params), rate)
        live = [pair for pair in self.pairs if all(id(tensor(layer.weight)) in rates for layer in pair)]
        if live:
            tensors = [layer_tensors(pair, tensor) for pair in live]
            balance = self.balance and len(live) == len(self.pairs)
            ts = [rates[id(tensor(second.weight))] for _, second in live]
            if is_per_run(ts[0]):
                prox_step_of_runs_(tensors, ts[0].flatten(), balance, self.regularize_bias)
            elif self.compiled:
                ts = [t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64) for t in ts]
                compile_once(prox_step_)(tensors, ts, balance, self.regularize_bias)
            else:
                prox_step_(tensors, ts, balance, self.regularize_bias)

    def penalty(self) -> Tensor:
        paths = unit_path_norms(self.pairs)
        if self.regularize_bias:
            paths = [
                row_norms_with_bias(first.weight, first.bias, True) * output_norms(second)
                for first, second in self.pairs
            ]
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
            row = row_norms_with_bias(first.weight, first.bias, self.regularize_bias).clamp(min=SMALLEST_NORM)
            column = output_norms(second).clamp(min=SMALLEST_NORM)
            slopes[id(first.weight)] = first.weight * along_rows(column / row, first.weight)
            slopes[id(second.weight)] = second.weight * along_columns(row / column, second.weight)
        return [slopes[id(p)] if id(p) in slopes else p.detach() for p in params]


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
