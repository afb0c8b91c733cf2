"""Regularizers that act on several runs of a stack at once, with a strength and a learning rate for each run."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wdlab.regularizers import Regularizer
from wdlab.regularizers.views import GradientSection
from wdlab.stacked.network import StackedNetwork


class RowsView:
    """The view (see ``wdlab.regularizers.views``) by which one method acts on several consecutive runs of a stack.

    The method belongs to the first of these runs. In place of a parameter of that run's model, it acts on a slice of
    the stack's batched tensor, which holds the parameter of all these runs.

    Args:
        optimizer: the optimizer of the first of these runs.
        model: the model of the first of these runs.
        network: the network of the stack.
        rows: the positions of these runs in the stack.
        strengths: the strength of the method in each of these runs, (rows,).

    Attributes:
        optimizer: as given.
        rows: as given.
        lr: the learning rates of the next update, (rows, 1, 1). ``StackedMethod.set_lr`` sets them.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        network: StackedNetwork,
        rows: slice,
        strengths: Tensor,
    ) -> None:
        self.optimizer, self.rows = optimizer, rows
        self._strengths = self.lr = as_column(strengths)
        self._tensors = {}
        for p, stacked in zip(model.parameters(), network.parameters, strict=True):
            tensor = self._tensors[id(p)] = stacked[rows]
            tensor.grad = stacked.grad[rows]

    def tensor(self, p: Tensor) -> Tensor:
        """Return the tensor on which the method acts in place of ``p``, a parameter of the first run's model.

        Its shape is (rows, out, in) for a weight and (rows, 1, out) for a bias.
        """
        return self._tensors[id(p)]

    def optimizer_group(self, p: Tensor) -> dict[str, Any]:
        """Return the only parameter group of the optimizer, which holds every ``p``."""
        return self.optimizer.param_groups[0]

    def sections(self, groups: Sequence[dict[str, Any]], decayed_only: bool = False) -> list[GradientSection]:
        """Return one section with the tensors of all parameters in the only group of the method.

        Args:
            groups: the method's parameter groups, a single one.
            decayed_only: has no effect, since a stack has no method whose strength is 0 in all its runs.
        """
        (group,) = groups
        params = [self.tensor(p) for p in group["params"]]
        return [GradientSection(params, group, self.optimizer_group(params[0]), self._strengths, self.lr)]


class StackedMethod:
    """A method that acts on several runs of a stack.

    Args:
        method: the method of the first of these runs, which is bound to ``view`` here.
        view: the view of these runs.
        acts: False if the strength is 0 in all these runs, so that the method only has metrics.

    Attributes:
        method: as given.
        rows: the positions of the runs in the stack.
        acts: as given.
    """

    def __init__(self, method: Regularizer, view: RowsView, acts: bool) -> None:
        self.method, self._view, self.rows, self.acts = method, view, view.rows, acts
        method.bind(view)

    def tensor(self, p: Tensor) -> Tensor:
        """Return the tensor on which the method acts in place of ``p``, see ``RowsView.tensor``."""
        return self._view.tensor(p)

    def set_lr(self, lr: Tensor) -> None:
        """Set the learning rates of the next update; ``lr`` holds the rates of all runs of the stack, (runs, 1, 1)."""
        self._view.lr = lr[self._view.rows]


def as_column(numbers: Tensor) -> Tensor:
    """Reshape one number per run from (runs,) to (runs, 1, 1), which broadcasts with a layer's batched tensors."""
    return numbers[:, None, None]
