"""Regularizers on the rows of a stack, with a strength for each run."""

import math

import torch
from torch import Tensor, nn

from wdlab import regularizers
from wdlab.regularizers import Regularizer
from wdlab.regularizers.base import ActiveGroup
from wdlab.regularizers.pathprox import prox_step_
from wdlab.stacked.network import Network, linear_layers
from wdlab.tensors import add_

# -- the methods, with a strength for each run


class StackedMethod:
    """One method on some rows of a stack.

    Args:
        method: that of one of these runs. It is taken over: what it acts on are the rows from now on.
        optimizer: that of the same run.
        model: of the same run.
        network: of the stack.
        rows: which.
        strengths: of these runs, (rows,).

    Attributes:
        lr: learning rates of the next step, (rows, 1, 1).
    """

    def __init__(
        self,
        method: Regularizer,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        network: Network,
        rows: slice,
        strengths: Tensor,
    ) -> None:
        self.method, self._group = method, optimizer.param_groups[0]
        self.place, self._strengths, self.lr = rows, as_column(strengths), as_column(strengths)
        method._optimizer = optimizer
        method.active_groups = self._parts
        if hasattr(method, "compiled"):
            method.compiled = False
        if isinstance(method, regularizers.PathProx):
            self._on_pairs(model, network)
        else:
            tensors = list(zip(network.parameters, network.gradients, strict=True))
            self._params = [_with_gradient(p[rows], g[rows]) for p, g in tensors[: _decayed(method, network)]]

    @property
    def _factor(self) -> float:
        return math.prod(schedule.factor(self.method.updates, self._group) for schedule in self.method.over_time)

    def _parts(self) -> list[ActiveGroup]:
        factor = self._factor
        if factor == 0 or not self._params:
            return []
        return [ActiveGroup(self._params, self._strengths * factor, self.lr, False, self.method.groups[0])]

    # -- PathProx, whose rows are matrices

    def _on_pairs(self, model: nn.Module, network: Network) -> None:
        method, layers = self.method, linear_layers(model)
        places = {id(layer): k for k, layer in enumerate(layers)}
        paired = [[places[id(layer)] for layer in pair] for pair in method.pairs]
        others = set(places.values()) - {k for pair in paired for k in pair}
        self._pairs = [
            tuple(t for k in pair for t in (network.weights[k][self.place], network.biases[k][self.place, 0]))
            for pair in paired
        ]
        self._params = [
            _with_gradient(network.weights[k][self.place], network.weight_gradients[k][self.place])
            for k in sorted(others)
        ]
        method.after_backward, method.after_step = self._pull_others, self._prox

    def _pull_others(self) -> None:
        for part in self._parts():
            add_([w.grad for w in part.params], part.params, part.strength)

    def _prox(self) -> None:
        if factor := self._factor:
            thresholds = (self.lr * self._strengths * factor).flatten()
            torch.vmap(self._prox_of_one_run, in_dims=(0, 0))(self._pairs, thresholds)

    def _prox_of_one_run(self, pairs: list[tuple[Tensor, ...]], threshold: Tensor) -> Tensor:
        prox_step_(pairs, [threshold] * len(pairs), self.method.balance, self.method.regularize_bias)
        return threshold


def as_column(numbers: Tensor) -> Tensor:
    """A number for each run, (runs, 1, 1): what broadcasts over a layer."""
    return numbers[:, None, None]


def _with_gradient(p: Tensor, gradient: Tensor) -> Tensor:
    p.grad = gradient
    return p


def _decayed(method: Regularizer, network: Network) -> int:
    """How many of ``network.parameters`` a method acts on: the weights, or everything."""
    return len(network.weights) * (2 if len(method.params) > len(network.weights) else 1)
