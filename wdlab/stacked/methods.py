"""Regularizers that act on several runs of a stack at once, with a strength and a learning rate for each run."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wdlab.metrics import MethodOfRuns
from wdlab.optimizers.base import DropIn
from wdlab.regularizers import Regularizer
from wdlab.regularizers.hooks import run_after_step, run_before_step
from wdlab.regularizers.views import GradientSection
from wdlab.schedules import Clock
from wdlab.stacked.network import StackedNetwork, StackedTensors


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
        moments: the optimizer's moments of all runs by torch's names, each in the order of ``network.parameters``.
        step: the number of updates that the optimizer has made.

    Attributes:
        optimizer: as given.
        rows: as given.
        runs: the number of these runs.
        lr: the learning rates of the current update, (rows, 1, 1). ``StackedMethod`` sets them.
        step: the number of updates that the optimizer has made. ``StackedMethod`` sets it.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        network: StackedNetwork,
        rows: slice,
        strengths: Tensor,
        moments: Mapping[str, StackedTensors],
        step: int,
    ) -> None:
        self.optimizer, self.rows, self.runs, self.step = optimizer, rows, rows.stop - rows.start, step
        self._strengths = as_column(strengths)
        self.lr = torch.zeros_like(self._strengths)
        own = list(model.parameters())
        self._tensors = {id(p): stacked[rows] for p, stacked in zip(own, network.parameters, strict=True)}
        for tensor, stacked in zip(self._tensors.values(), network.parameters, strict=True):
            tensor.grad = stacked.grad[rows]
        self._moments: dict[int, dict[str, Tensor]] = {id(p): {} for p in own}
        for name, tensors in moments.items():
            for p, stacked in zip(own, tensors.views, strict=True):
                self._moments[id(p)][name] = stacked[rows]

    def tensor(self, p: Tensor) -> Tensor:
        """Return the tensor on which the method acts in place of ``p``, a parameter of the first run's model.

        Its shape is (rows, out, in) for a weight and (rows, 1, out) for a bias.
        """
        return self._tensors[id(p)]

    def optimizer_group(self, p: Tensor) -> dict[str, Any]:
        """Return the only parameter group of the optimizer, which holds every ``p``."""
        return self.optimizer.param_groups[0]

    def state(self, p: Tensor) -> dict[str, Any]:
        """Return the optimizer's moments of ``p`` in the shape of ``tensor(p)``, and its ``step`` as one scalar."""
        return self._moments[id(p)] | {"step": torch.tensor(float(self.step))}

    def lr_of(self, p: Tensor) -> Tensor:
        """Return the learning rates of the current update, (rows, 1, 1)."""
        return self.lr

    def sections(self, groups: Sequence[dict[str, Any]], decayed_only: bool = False) -> list[GradientSection]:
        """Return one section with the tensors of all parameters in the only group of the method.

        Args:
            groups: the method's parameter groups, a single one.
            decayed_only: has no effect: where the strength of a run is 0, the method acts on it with strength 0.
        """
        (group,) = groups
        params = [self.tensor(p) for p in group["params"]]
        return [GradientSection(params, group, self.optimizer_group(params[0]), self._strengths, self.lr)]


class StackedMethod:
    """A method that acts on several runs of a stack.

    The method of each run holds the run's part of the state, for the run's metrics and checkpoints. A copy of the first
    of them acts on all runs. It takes over their states here and returns them by ``write_back``.

    Args:
        runs: the method of each of these runs, equal except for their strengths.
        view: the view of these runs.
        clock: the length of the runs and of an epoch, in updates.

    Attributes:
        method: the method that acts on all these runs.
        acts: False if the method does nothing: it is off in all runs (its strength is 0), and no schedule of its
            strength keeps a state from the gradients.
    """

    def __init__(self, runs: Sequence[Regularizer], view: RowsView, clock: Clock) -> None:
        observes = any(schedule.observes_gradients for schedule in runs[0].over_time)
        self.acts = observes or not all(run.is_off for run in runs)
        self.method = copy.copy(runs[0])
        self.method.over_time = tuple(map(copy.copy, self.method.over_time))
        self.method.updates, self.method.clock = view.step, clock
        self._runs, self._view = runs, view
        self.method.bind(view)
        self.method.gather_runs(runs)

    def measured(self, model: nn.Module) -> MethodOfRuns:
        """Return the method in the form in which the metrics take it; ``model`` is the model of the first run."""
        return MethodOfRuns(self.method, self._view.rows, [self._view.tensor(p) for p in model.parameters()])

    def before_step(self, lr: Tensor, step: int) -> None:
        """Run the method's hooks before the optimizer's step.

        Args:
            lr: the learning rates of all runs of the stack in this update, (runs, 1, 1).
            step: the number of updates made.
        """
        self._view.lr, self._view.step = lr[self._view.rows], step
        run_before_step([self.method])

    def after_step(self) -> None:
        """Run the method's hook after the optimizer's step."""
        self._view.step += 1
        run_after_step([self.method])

    def write_back(self) -> None:
        """Write each run's part of the state to the method of the run."""
        self.method.scatter_runs(self._runs)


class StackedDecay(StackedMethod):
    """The weight decay of a drop-in optimizer on several runs of a stack.

    Args:
        optimizers: the optimizer of each of these runs.
        runs: the method of each run's weight decay.
        view: the view of these runs.
        clock: the length of the runs and of an epoch, in updates.
    """

    def __init__(self, optimizers: Sequence[DropIn], runs: Sequence[Regularizer], view: RowsView, clock: Clock) -> None:
        self._optimizers = optimizers
        for optimizer, run in zip(optimizers, runs, strict=True):
            optimizer.load_state_into(run)
        super().__init__(runs, view, clock)

    def write_back(self) -> None:
        """Write each run's part of the state to the optimizer of the run."""
        super().write_back()
        for optimizer, run in zip(self._optimizers, self._runs, strict=True):
            optimizer.save_state_of(run)


def as_column(numbers: Tensor) -> Tensor:
    """Reshape one number per run from (runs,) to (runs, 1, 1), which broadcasts with a layer's batched tensors."""
    return numbers[:, None, None]


def is_drop_in(optimizer: torch.optim.Optimizer) -> bool:
    """Return True for an optimizer of wdlab that can be stacked, whose weight decay is a method."""
    return bool(getattr(optimizer, "stacked_settings", ()))
