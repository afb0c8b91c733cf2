"""Regularizers on the rows of a stack, with a strength and a learning rate for each run."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wdlab.regularizers import Regularizer
from wdlab.regularizers.views import Section
from wdlab.stacked.network import Network


class RowsView:
    """The parameters of some runs of a stack, as what one method acts on.

    The method is that of the first of these runs. A parameter of its model stands for the same parameter of all of
    them: a slice of the network's batched tensor.

    Args:
        optimizer, model: of the first of the runs.
        network: of the stack.
        rows: the runs.
        strengths: a number for each of them, (rows,).

    Attributes:
        lr: learning rates of the next update, (rows, 1, 1).
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, network: Network, rows: slice, strengths: Tensor
    ) -> None:
        self.optimizer, self.rows = optimizer, rows
        self._strengths = self.lr = as_column(strengths)
        parameters = network.in_order_of_a_model(network.parameters)
        gradients = network.in_order_of_a_model(network.gradients)
        self._tensors = {}
        for p, stacked, gradient in zip(model.parameters(), parameters, gradients, strict=True):
            tensor = self._tensors[id(p)] = stacked[rows]
            tensor.grad = gradient[rows]

    def tensor(self, p: Tensor) -> Tensor:
        """Return the slice of these runs that ``p`` stands for, (rows, *shape); of a bias (rows, 1, out)."""
        return self._tensors[id(p)]

    def optimizer_group(self, p: Tensor) -> dict[str, Any]:
        """Return the optimizer's only group."""
        return self.optimizer.param_groups[0]

    def sections(self, groups: Sequence[dict[str, Any]], decayed_only: bool = False) -> list[Section]:
        """Return the slices of the parameters of the method's only group."""
        (group,) = groups
        params = [self.tensor(p) for p in group["params"]]
        return [Section(params, group, self.optimizer_group(params[0]), self._strengths, self.lr)]


class StackedMethod:
    """A method on some runs of a stack.

    Args:
        method: of the first of these runs; it is bound to the view from now on.
        view: of these runs.
    """

    def __init__(self, method: Regularizer, view: RowsView) -> None:
        self.method, self._view = method, view
        method.bind(view)

    def set_lr(self, lr: Tensor) -> None:
        """Set the learning rates of the next update; ``lr`` is that of all runs of the stack, (runs, 1, 1)."""
        self._view.lr = lr[self._view.rows]


def as_column(numbers: Tensor) -> Tensor:
    """Return a number for each run, (runs,), as (runs, 1, 1), which broadcasts over a layer."""
    return numbers[:, None, None]
