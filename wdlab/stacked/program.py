"""A stack: runs of one MLP that differ in numbers only, as one batched program for the loop.

The runs are ordinary experiments whose tensors are slices of shared batched tensors. Metrics, recorder and checkpoints
see only their own run's slice and need no changes. The networks go forward and backward by batched matrix products, and
the methods' arithmetic acts on all runs at once, with a strength and a learning rate for each.
"""

import contextlib
import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from wdlab.data import StackedBatches
from wdlab.engine.experiment import Experiment
from wdlab.engine.observer import RunObserver, is_due
from wdlab.metrics import Evaluated
from wdlab.records.directory import RunDirectory
from wdlab.records.recorder import Recorder
from wdlab.regularizers.checks import is_sgd_group
from wdlab.regularizers.hooks import run_after_step, run_before_step
from wdlab.schedules import Clock
from wdlab.settings import TrainSettings
from wdlab.stacked.methods import RowsView, StackedMethod, as_column
from wdlab.stacked.network import Network
from wdlab.stacked.steps import AdamStep, SGDStep


@dataclass
class StackedRun:
    """One run of a stack.

    Args:
        experiment: as for a run that is trained alone. Its optimizer takes no steps; it holds state and learning rate.
        run: its directory.
        recorder: of its records.
        method_key: equal for runs whose methods differ in strength only.
        start: the checkpoint it resumes from, None at the beginning.
        outcome: the outcome once it is known, see ``loop.fit``.
    """

    experiment: Experiment
    run: RunDirectory
    recorder: Recorder | None
    method_key: str = ""
    start: dict[str, Any] | None = None
    outcome: str | None = None

    @property
    def first(self) -> int:
        """Number of updates made in earlier sessions."""
        return 0 if self.start is None else self.start["step"]


class Stack:
    """Runs in one program, see ``wdlab.loop.Program``. A run that diverges is left behind, the others continue.

    Args:
        runs: of one network on one data set, at the same step; runs with one ``method_key`` follow each other.
        settings: of the training, the same for all.
    """

    def __init__(self, runs: Sequence[StackedRun], settings: TrainSettings) -> None:
        self._runs, self._settings = runs, settings
        self.name, self.first = f"{len(runs)} runs in one stack", runs[0].first
        experiments = self._experiments = [run.experiment for run in runs]
        self._data = experiments[0].data
        self._batches = StackedBatches(self._data.train, settings.batch_size, [e.seed for e in experiments])
        self._clock = Clock(settings.steps, self._batches.steps_per_epoch)
        self._base_lrs = [experiment.optimizer.param_groups[0]["lr"] for experiment in experiments]
        for run in runs:
            run.experiment.regularizer.clock = self._clock
            if run.start is not None:
                for part in ("model", "optimizer", "regularizer"):
                    getattr(run.experiment, part).load_state_dict(run.start[part])
        self._network = Network([experiment.model for experiment in experiments])
        group = experiments[0].optimizer.param_groups[0]
        self._step = (SGDStep if is_sgd_group(group) else AdamStep)(self._network, group, self.first > 0)
        self._share_moments()
        self._lrs = as_column(self._numbers(self._base_lrs))
        self._methods = self._methods_of_runs()
        finite = torch.tensor([run.start is None or run.start["finite"] for run in runs])
        self._finite = finite.to(self._network.weights[0].device)
        per_epoch = self._batches.steps_per_epoch
        self._observers = [RunObserver(run.experiment, settings, run.run, run.recorder, per_epoch) for run in runs]
        self.last: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._exits = contextlib.ExitStack()
        for experiment in self._experiments:  # for the metrics of a step; these optimizers take no steps
            self._exits.enter_context(experiment.regularizer.attach(experiment.optimizer))
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def begin(self) -> bool:
        """Record the state at the beginning; return False if no run is left to train."""
        self._write_back(self.first, self._lr_factor(self.first))
        evaluated = self._evaluated(0) if self.first == 0 else []
        for k, run in enumerate(self._runs):
            if run.start is None:
                self._observers[k].record(0, self._finite[k], evaluated[k])
            elif not self._finite[k] and self._observers[k].last_step == self.first:
                run.outcome = "diverged"
        return bool(self._active())

    def backward(self, step: int) -> None:
        """Compute the gradients of update ``step + 1`` of every run."""
        self._losses = self._network.backward(*self._batches(step))

    def observe(self, step: int) -> None:
        """Measure gradients and weights between backward and the update."""
        self._write_back(step, self._lr_factor(step))
        for k in self._active():
            self._observers[k].before_update()

    def update(self, step: int) -> None:
        """Make update ``step + 1`` of every run."""
        if self._settings.clip_norm is not None:
            self._network.clip(self._settings.clip_norm)
        lr = self._lrs * self._lr_factor(step)
        for stacked in self._methods:
            stacked.set_lr(lr)
            run_before_step([stacked.method])
        self._step(lr, step)
        for stacked in reversed(self._methods):  # the decay of an optimizer is a part of its step
            run_after_step([stacked.method])
        self._finite &= torch.isfinite(self._losses)

    def record(self, step: int) -> bool:
        """Write the log lines of the state after ``step`` updates; return False if every run has diverged."""
        self._write_back(step, self._lr_factor(step - 1))
        evaluated = self._evaluated(step)
        for k in self._active():
            self._observers[k].after_update()
            if not self._observers[k].record(step, self._finite[k], evaluated[k]):
                self._finite[k] = False
                self._save(step, [k])
                self._runs[k].outcome = "diverged"
        active = self._active()
        self.last = self._observers[active[0]].last if active else {}
        return bool(active)

    def save(self, step: int) -> None:
        """Write checkpoints of the state after ``step`` updates."""
        self._save(step, self._active())

    def any_true(self, flag: bool) -> bool:
        """Return ``flag``: no other process shares these runs."""
        return flag

    def _save(self, step: int, which: Sequence[int]) -> None:
        self._write_back(step, self._lr_factor(max(0, step - 1)))
        for k in which:
            self._observers[k].save(step, self._finite[k])

    def _active(self) -> list[int]:
        """Return the runs that are still trained."""
        return [k for k, run in enumerate(self._runs) if run.outcome is None]

    def _lr_factor(self, step: int) -> float:
        return self._experiments[0].lr_factor(step, *self._clock)

    def _evaluated(self, step: int) -> Sequence[Evaluated | None]:
        """Return losses and accuracies of each run on the whole splits where they are due."""
        is_full = is_due(self._settings, "eval_every", step)
        return self._network.evaluate(self._data) if is_full else [None] * len(self._runs)

    def _write_back(self, steps: int, factor: float) -> None:
        """Write what is not in the runs' slices to their experiments: the number of updates and the learning rate."""
        for experiment, lr in zip(self._experiments, self._base_lrs, strict=True):
            experiment.optimizer.param_groups[0]["lr"] = lr * factor
            experiment.regularizer.updates = steps
            for p in experiment.model.parameters() if self._step.state else ():
                experiment.optimizer.state[p].update(self._step.scalars(steps))

    def _share_moments(self) -> None:
        """Make the optimizers' moments views of the stack's, with the values that they have."""
        for name, moments in self._step.state.items():
            for run, experiment in enumerate(self._experiments):
                places = self._network.of_run(moments, run)
                for p, place in zip(experiment.model.parameters(), places, strict=True):
                    state = experiment.optimizer.state[p]
                    if name in state:
                        place.copy_(state[name])
                    state[name] = place

    def _methods_of_runs(self) -> list[StackedMethod]:
        """Return the methods with the runs that each acts on: the regularizers, and the decays of the optimizers."""
        found, first = [], 0
        for _, same in itertools.groupby(self._runs, key=lambda run: run.method_key):
            experiments = [run.experiment for run in same]
            rows = slice(first, first + len(experiments))
            first = rows.stop
            one, optimizer = experiments[0], experiments[0].optimizer
            decays = [(copy.copy(one.regularizer), [experiment.regularizer.strength for experiment in experiments])]
            if getattr(optimizer, "stacked_settings", ()):  # a drop-in optimizer with a decay of its own
                own = [experiment.optimizer.param_groups[0]["weight_decay"] for experiment in experiments]
                decays.append((optimizer.make_method([optimizer.decayed_group(optimizer.param_groups[0])]), own))
            for method, strengths in decays:
                if any(strengths):
                    method.updates, method.clock = self.first, self._clock
                    view = RowsView(optimizer, one.model, self._network, rows, self._numbers(strengths))
                    found.append(StackedMethod(method, view))
        return found

    def _numbers(self, values: Sequence[float]) -> Tensor:
        like = self._network.weights[0]
        return torch.tensor(values, device=like.device, dtype=like.dtype)
