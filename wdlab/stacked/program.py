"""A stack: several runs of one MLP on one data set as one batched program for the loop.

The runs may differ in seed, in regularizer, and in numbers of the optimizer such as the learning rate.

Each run is an ordinary experiment whose tensors are slices of shared batched tensors. Its recorder and checkpoints are
the same as for a run that is trained alone. Forward and backward passes of all runs are batched matrix products, the
metrics of all runs are measured at once, and a method acts on several runs at once, with a strength, a learning rate
and statistics of the gradients for each.
"""

import contextlib
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from wdlab.data import StackedBatches
from wdlab.engine.experiment import Experiment
from wdlab.engine.observer import ObservedRun, RunObserver, is_due
from wdlab.metrics import MethodOfRuns, ResultsBySplit
from wdlab.records.directory import RunDirectory
from wdlab.records.recorder import Recorder
from wdlab.regularizers.checks import is_sgd_group
from wdlab.schedules import Clock
from wdlab.settings import TrainSettings
from wdlab.stacked.methods import RowsView, StackedDecay, StackedMethod, as_column, is_drop_in
from wdlab.stacked.network import StackedNetwork
from wdlab.stacked.steps import AdamStep, SGDStep


@dataclass
class StackedRun:
    """One run of a stack.

    Args:
        experiment: the same objects as for a run that is trained alone. Its optimizer takes no steps and only holds the
            state and the learning rate.
        run: the directory of the run.
        recorder: the recorder of the log lines; it has to be set before a ``Stack`` is made.
        method_key: a text that is equal for runs whose methods differ in strength only.
        start: the content of the checkpoint to resume from, None for a new run.
        outcome: ``diverged`` after the run has diverged, until then None.
    """

    experiment: Experiment
    run: RunDirectory
    recorder: Recorder | None
    method_key: str = ""
    start: dict[str, Any] | None = None
    outcome: str | None = None

    @property
    def first(self) -> int:
        """The number of updates that earlier sessions have made."""
        return 0 if self.start is None else self.start["step"]


class Stack:
    """Several runs as one ``wdlab.loop.Program``. A run that diverges drops out of the stack; the others continue.

    Args:
        runs: runs of one network on one data set, with the same number of updates made. Runs with the same
            ``method_key`` are neighbours.
        settings: the settings of ``train``, which all runs share.

    Attributes:
        name: the text shown by the progress bar.
        first: the number of updates that earlier sessions have made.
        last: the newest log line of the first run that has not diverged; {} if there is none.
    """

    def __init__(self, runs: Sequence[StackedRun], settings: TrainSettings) -> None:
        self._runs, self._settings = runs, settings
        self.name, self.first = f"{len(runs)} runs in one stack", runs[0].first
        experiments = self._experiments = [run.experiment for run in runs]
        self._data = experiments[0].data
        self._batches = StackedBatches(self._data.train, settings.batch_size, [e.seed for e in experiments])
        self._clock = Clock(settings.steps, self._batches.steps_per_epoch, experiments[0].lr_factor)
        self._base_lrs = [experiment.optimizer.param_groups[0]["lr"] for experiment in experiments]
        for run in runs:
            run.experiment.regularizer.clock = self._clock
            if run.start is not None:
                for part in ("model", "optimizer", "regularizer"):
                    getattr(run.experiment, part).load_state_dict(run.start[part])
        self._network = StackedNetwork([experiment.model for experiment in experiments])
        group = experiments[0].optimizer.param_groups[0]
        if is_drop_in(experiments[0].optimizer):  # its weight decay is a method, and no part of the base step
            group = group | {"weight_decay": 0.0}
        kind = SGDStep if is_sgd_group(group) else AdamStep
        self._step = kind(self._network, group, self._base_lrs, self.first > 0)
        self._share_moments()
        self._lrs = as_column(self._numbers(self._base_lrs))
        self._regularizers, self._acting = self._methods_of_runs()
        finite = torch.tensor([run.start is None or run.start["finite"] for run in runs])
        self._finite = finite.to(self._network.parameters[0].device)
        observed = [ObservedRun(run.experiment, run.run, run.recorder) for run in runs]
        per_epoch, tensor = self._batches.steps_per_epoch, self._network.tensor
        self._observer = RunObserver(observed, settings, per_epoch, tensor=tensor, methods=self._regularizers)
        self.last: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._exits = contextlib.ExitStack()
        for experiment in self._experiments:  # the metrics read the attachment; these optimizers take no steps
            self._exits.enter_context(experiment.regularizer.attach(experiment.optimizer))
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def begin(self) -> bool:
        """Write the log line of step 0 for new runs, and set the outcome of runs that diverged in an earlier session.

        Returns:
            False if every run has diverged, so that there is nothing to train.
        """
        self._write_back(self.first, self._lr_factor(self.first))
        if self.first == 0:
            self._observer.record(0, self._finite, self._evaluated(0), range(len(self._runs)))
        for k, (run, is_finite) in enumerate(zip(self._runs, self._finite.tolist(), strict=True)):
            if not is_finite and self._observer.last(k).get("step") == self.first:
                run.outcome = "diverged"
        return bool(self._active())

    def backward(self, step: int) -> None:
        """Compute the gradients of update ``step + 1`` of every run."""
        self._losses = self._network.backward(*self._batches(step))

    def observe(self, step: int) -> None:
        """Measure gradients and weights of every run between backward and the update."""
        self._write_back(step, self._lr_factor(step))
        self._observer.before_update()

    def update(self, step: int) -> None:
        """Make update ``step + 1`` of every run: clip the gradients, run the methods and the optimizer."""
        if self._settings.clip_norm is not None:
            self._network.clip(self._settings.clip_norm)
        factor = self._lr_factor(step)
        lr = self._lrs * factor
        for stacked in self._acting:
            stacked.before_step(lr, step)
        self._step(factor, step)
        # in reverse: an optimizer's own decay is part of its step, and follows the regularizer in the list
        for stacked in reversed(self._acting):
            stacked.after_step()
        self._finite &= torch.isfinite(self._losses)

    def record(self, step: int) -> bool:
        """Write the log lines of the state after ``step`` updates.

        A run that turns out to have diverged gets a checkpoint that says so, and its outcome.

        Returns:
            False if every run has diverged.
        """
        self._write_back(step, self._lr_factor(step - 1))
        self._observer.after_update()
        active = self._active()
        are_finite = self._observer.record(step, self._finite, self._evaluated(step), active)
        if diverged := [k for k, is_finite in zip(active, are_finite, strict=True) if not is_finite]:
            self._finite[diverged] = False
            self._save(step, diverged)
            for k in diverged:
                self._runs[k].outcome = "diverged"
            active = self._active()
        self.last = self._observer.last(active[0]) if active else {}
        return bool(active)

    def save(self, step: int) -> None:
        """Write a checkpoint of the state after ``step`` updates for each run that has not diverged."""
        self._save(step, self._active())

    def any_true(self, flag: bool) -> bool:
        """Return ``flag``, since no other process shares the runs of a stack."""
        return flag

    def _save(self, step: int, which: Sequence[int]) -> None:
        """Write a checkpoint of the state after ``step`` updates for the runs at the positions ``which``."""
        self._write_back(step, self._lr_factor(max(0, step - 1)))
        self._observer.save(step, self._finite.tolist(), which)

    def _active(self) -> list[int]:
        """Return the positions of the runs that have not diverged."""
        return [k for k, run in enumerate(self._runs) if run.outcome is None]

    def _lr_factor(self, step: int) -> float:
        return self._clock.lr_factor(step)

    def _evaluated(self, step: int) -> ResultsBySplit | None:
        """Return losses and accuracies (runs,) on the whole splits, None if they are not due."""
        return self._network.evaluate(self._data) if is_due(self._settings, "eval_every", step) else None

    def _write_back(self, steps: int, factor: float) -> None:
        """Write the values that are not slices of the stack to the experiments of the runs.

        Args:
            steps: the number of updates made.
            factor: the factor on the base learning rates.
        """
        for experiment, lr in zip(self._experiments, self._base_lrs, strict=True):
            experiment.optimizer.param_groups[0]["lr"] = lr * factor
            experiment.regularizer.updates = steps
            for p in experiment.model.parameters() if self._step.state else ():
                experiment.optimizer.state[p].update(self._step.scalars(steps))
        for one in self._regularizers:  # also of those that do not act
            one.method.updates = steps
        for stacked in self._acting:
            stacked.write_back()

    def _share_moments(self) -> None:
        """Replace the moments in the optimizers' states by views of the stack's moments, with the same values."""
        for name, moments in self._step.state.items():
            for run, experiment in enumerate(self._experiments):
                places = self._network.views_of_run(moments, run)
                for p, place in zip(experiment.model.parameters(), places, strict=True):
                    state = experiment.optimizer.state[p]
                    if name in state:
                        place.copy_(state[name])
                    state[name] = place

    def _methods_of_runs(self) -> tuple[list[MethodOfRuns], list[StackedMethod]]:
        """Return the regularizers of the runs, for their metrics, and the methods that act in the updates.

        For each group of runs that share a ``method_key``, the acting methods are the regularizer and, with a drop-in
        optimizer, the method of its weight decay, as far as they act.
        """
        regularizers, acting, first = [], [], 0
        for _, same in itertools.groupby(self._runs, key=lambda run: run.method_key):
            experiments = [run.experiment for run in same]
            rows = slice(first, first := first + len(experiments))
            optimizers, model = [experiment.optimizer for experiment in experiments], experiments[0].model
            kinds = [(StackedMethod, [experiment.regularizer for experiment in experiments])]
            if is_drop_in(optimizers[0]):
                own = [one.make_method([one.decayed_group(one.param_groups[0])]) for one in optimizers]
                kinds.append((functools.partial(StackedDecay, optimizers), own))
            methods = []
            for make, of_runs in kinds:
                numbers = self._numbers([method.strength for method in of_runs])
                state = optimizers[0], model, self._network, rows, numbers, self._step.state, self.first
                methods.append(make(of_runs, RowsView(*state), self._clock))
            regularizers.append(methods[0].measured(model))
            acting += [method for method in methods if method.acts]
        return regularizers, acting

    def _numbers(self, values: Sequence[float]) -> Tensor:
        """Return ``values`` as a tensor with the device and dtype of the weights."""
        like = self._network.parameters[0]
        return torch.tensor(values, device=like.device, dtype=like.dtype)
