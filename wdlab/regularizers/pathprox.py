"""PathProx (P1): a proximal step on the path-norm, the penalty that weight decay on a ReLU network is equivalent to.

Yang et al. 2022, arXiv 2210.03069.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from wdlab.homogeneous import (
    Pair,
    column_norms,
    homogeneous_pairs,
    output_norms,
    pairs_form_a_chain,
    unit_path_norms,
    weights,
)
from wdlab.regularizers.base import Regularizer, Schedules
from wdlab.regularizers.checks import check_flag, check_strength
from wdlab.regularizers.in_loss import ascent_sign
from wdlab.regularizers.pathprox_step import (
    SMALLEST_NORM,
    along_columns,
    along_rows,
    layer_tensors,
    prox_step_,
    row_norms_with_bias,
)
from wdlab.regularizers.penalties import HalfSquare
from wdlab.tensors import compiled as compile_once
from wdlab.tensors import is_per_run, is_sharded


class PathProx(Regularizer):
    """PathProx: a proximal step on the path-norm ``R(w) = sum over homogeneous units |w|_2 |v|_2``.

    [grade A: released code, step by step]

    A homogeneous unit is a ReLU neuron or channel with input weights ``w`` and output weights ``v``, see
    :mod:`wdlab.homogeneous`. Yang et al. 2022, arXiv 2210.03069 (P1). After every optimizer step on the loss:

    (1) Scale the pairs of layers so that all path-norms equal their geometric mean. The network's function does not
    change, provided that only ReLU, pooling and the like lie between one pair and the next. With a dead pair (path-norm
    at most 1e-6) this is left out: no factor could make it equal to the others, and biases would overflow.
    (2) Divide every unit's input weights and bias by ``|w|``, so that the input weights have length 1.
    (3) Shrink every unit's output weights by the prox ``v max(0, 1 - t/|v|)`` with ``t = lr * s``. Output weights with
    ``|v| <= t`` become exactly zero. Biases are scaled, never decayed.

    The released code divides by ``max(|v|, 1e-6)`` in (3). Thresholds below 1e-6 then zero nothing, and a learning rate
    that falls to 0 revives every unit in the last steps. Here (3) is the prox at every threshold; for thresholds of
    1e-6 and more the results are the same.

    The learning rate multiplies the decay (as part of the threshold). While the strength (with ``over_time``) or the
    learning rate is 0, the method does nothing, since step (2) alone would change the function. A pair without
    gradients in a step (frozen or unused) is not changed in the step, and (1) is skipped for all pairs. Sharded weights
    are refused, since a unit's norm needs its whole row.

    Args:
        pairs: disjoint ``(first, second)`` modules with ``weight`` (out, in, ...) and optional ``bias``. Row i of
            ``first`` and column i of ``second`` belong to unit i. ``homogeneous_pairs(model)`` returns them.
        strength: s, finite and >= 0.
        other: weights outside the pairs. They get L2 regularization, ``s/2 |w|^2``, by the gradient of the loss.
        balance: True to do (1). The class does not check that (1) keeps the network's function; ``for_model`` does.
        regularize_bias: True to count a unit's bias among its input weights, in the norm and in the penalty. (1) is not
            done then, regardless of ``balance``, as in the released code.
        compiled: True to do the arithmetic by ``torch.compile``, which needs a C++ compiler on the CPU.
        over_time: as in :class:`wdlab.regularizers.Regularizer`.

    Raises:
        ValueError: for no pairs, a module in two pairs, a pair whose shapes do not match, a flag that is not a
            bool, a negative or non-finite strength; at ``attach`` for sharded weights.
    """

    stackable = minimizes_penalty = True

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
        self.regularize_bias = check_flag("regularize_bias", regularize_bias)
        self.balance = check_flag("balance", balance) and not regularize_bias
        self.compiled = check_flag("compiled", compiled)
        check_strength(strength)
        check_pairs(self.pairs)
        super().__init__([*(layer.weight for pair in self.pairs for layer in pair), *other], strength, over_time)

    @classmethod
    def for_model(cls, model: nn.Module, strength: float, scope: str = "weights", **options: Any) -> Self:
        """Create PathProx on ``homogeneous_pairs(model)``, with the model's remaining weights as ``other``.

        Frozen weights are left out. A pair with a frozen weight is no pair; its other weight is in ``other``.

        Args:
            model: the network.
            strength: s, finite and >= 0.
            scope: ``weights``; PathProx has no other scope.
            options: further keyword arguments of the class.

        Raises:
            ValueError: for another scope, a model without pairs, or sharded weights; if balancing the pairs would
                change the model's function; if the strength is not 0 but ``over_time`` is 0 in every step.
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
        """The weights of the pairs: first and second layer of each pair in turn. They come first in ``params``."""
        return self.groups[0]["params"][: 2 * len(self.pairs)]

    def _is_paired(self, weight: Tensor) -> bool:
        return any(weight is p for p in self._paired)

    @property
    def other(self) -> list[Tensor]:
        """The weights outside the pairs."""
        return self._unpaired(self.params)

    def _unpaired(self, params: Iterable[Tensor]) -> list[Tensor]:
        """Return those of ``params`` that are not weights of a pair."""
        paired = {id(p) for p in self._paired}
        return [p for p in params if id(p) not in paired]

    def _note_on(self, p: Tensor) -> str:
        return ", ".join(["path-norm"] * self._is_paired(p) + [note for note in [super()._note_on(p)] if note])

    def _replaced(self) -> list[str]:
        layers = zip((layer for pair in self.pairs for layer in pair), self._paired, strict=True)
        return super()._replaced() or [
            f"the weight of a {type(layer).__name__}" for layer, p in layers if layer.weight is not p
        ]

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        check_unsharded(self.params)

    def after_backward(self) -> None:
        if sum(len(group["params"]) for group in self.groups) == 2 * len(self.pairs):
            return  # no weights outside the pairs
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
            if not isinstance(rate, Tensor) and rate <= 0:
                continue
            if is_per_run(rate):
                rate = rate.flatten()
            elif self.compiled and not isinstance(rate, Tensor):  # a number would be compiled anew for each value
                rate = torch.tensor(rate, dtype=torch.float64)
            rates |= dict.fromkeys(map(id, part.params), rate)
        active = [pair for pair in self.pairs if all(id(tensor(layer.weight)) in rates for layer in pair)]
        if active:
            tensors = [layer_tensors(pair, tensor) for pair in active]
            balance = self.balance and len(active) == len(self.pairs)
            thresholds = [rates[id(tensor(second.weight))] for _, second in active]
            step = compile_once(prox_step_) if self.compiled and not is_per_run(thresholds[0]) else prox_step_
            step(tensors, thresholds, balance, self.regularize_bias)

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
        tensor = self._bound.tensor if self.is_attached else lambda p: p
        stacked = tensor(self.params[0]).dim() > self.params[0].dim()
        slopes = {}
        for first, second in self.pairs:
            w, bias, v, _ = layer_tensors((first, second), tensor)
            bias = bias[:, 0] if stacked and bias is not None else bias
            row = row_norms_with_bias(w, bias, self.regularize_bias, stacked).clamp(min=SMALLEST_NORM)
            column = column_norms(v, stacked).clamp(min=SMALLEST_NORM)
            slopes[id(tensor(first.weight))] = w * along_rows(column / row, w)
            slopes[id(tensor(second.weight))] = v * along_columns(row / column, v)
        return [slopes[id(p)] if id(p) in slopes else p.detach() for p in params]


def check_unsharded(params: Iterable[Tensor]) -> None:
    """Raise a ValueError if any of ``params`` is sharded over processes (a DTensor)."""
    if any(is_sharded(p) for p in params):
        raise ValueError("PathProx: cannot work on sharded weights, since the norm of a unit takes all of its row")


def check_pairs(pairs: list[Pair]) -> None:
    """Raise a ValueError if there are no pairs, a layer is in two pairs, or a pair's layers differ in their units.

    The units of a pair are the outputs of its first layer and the inputs of its second layer.
    """
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
