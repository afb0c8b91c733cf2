"""One run as a program that ``wdlab.loop`` drives. Several processes may share the run, see ``parallel``."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from wdlab.data import Batches
from wdlab.engine.averaging import WeightAverage
from wdlab.engine.device import Machine
from wdlab.engine.experiment import Experiment, set_random_state
from wdlab.engine.observer import NullObserver, ObservedRun, RunObserver
from wdlab.metrics import cross_entropy
from wdlab.records.directory import RunDirectory
from wdlab.records.recorder import Recorder
from wdlab.schedules import Clock
from wdlab.settings import TrainSettings
from wdlab.strides import match_state_strides


class BatchGradient:
    """The part of an update before the optimizer's step: the loss of a batch, its gradient, and the clipping.

    No method waits for the device.

    Args:
        forward: the network in its training form, see ``Machine.training_form``.
        optimizer: the optimizer of all the network's parameters.
        machine: the machine, whose precision the forward pass uses.
        clip_norm: the largest norm of the gradient; None does not clip it.
        label_smoothing: the share of every label that is spread over all classes; None is 0.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        machine: Machine,
        clip_norm: float | None = None,
        label_smoothing: float | None = None,
    ) -> None:
        self._forward, self._optimizer = forward, optimizer
        self._machine, self._clip_norm, self._label_smoothing = machine, clip_norm, label_smoothing or 0.0

    def backward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of a batch and put its gradient into ``p.grad`` of every parameter.

        Args:
            inputs: the inputs of the network, (batch, ...).
            labels: int64, (batch,), or (batch, characters) for text.

        Returns:
            The mean cross-entropy in nats with label smoothing, a detached 0-dim tensor.
        """
        self._optimizer.zero_grad(set_to_none=True)
        with self._machine.autocast():
            loss = cross_entropy(self._forward(inputs), labels, label_smoothing=self._label_smoothing)
        loss.backward()
        return loss.detach()

    def clip(self) -> None:
        """Scale the gradient to the norm ``clip_norm`` if its norm is larger."""
        if self._clip_norm is not None:
            parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self._clip_norm)


class OneRun:
    """One run as a ``wdlab.loop.Program``.

    Args:
        experiment: the objects that the run trains with.
        settings: the settings of ``train``.
        run: the directory of the run.
        recorder: the recorder of the log lines. None in a process that does not lead, which writes nothing.
        start: the content of the checkpoint to resume from, None for a new run.

    Attributes:
        name: the name of the run.
        first: the number of updates that earlier sessions have made.
    """

    def __init__(
        self,
        experiment: Experiment,
        settings: TrainSettings,
        run: RunDirectory,
        recorder: Recorder | None,
        start: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.first, self._start = run.name, start["step"] if start else 0, start
        self._experiment, self._settings = experiment, settings
        self._optimizer, machine = experiment.optimizer, experiment.machine
        self._group = machine.group
        split = experiment.data.train
        self._batches = Batches(split, settings.batch_size, experiment.seed, self._group.rank, self._group.size)
        self._clock = Clock(settings.steps, self._batches.steps_per_epoch, experiment.lr_factor)
        self._base_lrs = [group["lr"] for group in self._optimizer.param_groups]
        experiment.regularizer.clock = self._clock
        self._average = WeightAverage(experiment.model, settings.average_decay) if settings.average_decay else None
        if start is not None:
            self._restore(start)
        set_random_state(start, machine, experiment.seed)
        self._step = BatchGradient(
            machine.training_form(experiment.model),
            self._optimizer,
            machine,
            settings.clip_norm,
            settings.label_smoothing,
        )
        self._finite = torch.tensor([start is None or start["finite"]], device=machine.device)
        self._observer: RunObserver | NullObserver = NullObserver()
        if recorder:
            observed = [ObservedRun(experiment, run, recorder)]
            self._observer = RunObserver(observed, settings, self._batches.steps_per_epoch, self._average)

    def _restore(self, start: dict[str, Any]) -> None:
        """Load the state of model, optimizer, regularizer and average from the checkpoint ``start``."""
        experiment = self._experiment
        experiment.model.load_state_dict(start["model"])
        experiment.optimizer.load_state_dict(start["optimizer"])
        match_state_strides(experiment.optimizer)
        experiment.regularizer.load_state_dict(start["regularizer"])
        if self._average:
            self._average.load_state_dict(start["average"])

    @property
    def last(self) -> dict[str, Any]:
        """The newest log line; {} if there is none, or in a process that does not lead."""
        return self._observer.last()

    def __enter__(self) -> Self:
        self._handle = self._experiment.regularizer.attach(self._optimizer)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def begin(self) -> bool:
        """Set up the first update, and write the log line of step 0 for a new run.

        Returns:
            False if the run has diverged in an earlier session, so that there is nothing to train.
        """
        self._experiment.model.train()
        self._set_lr(self.first)
        if self._start is None:
            self._observer.record(0, self._finite)
            return True
        return not self.any_true(not self._start["finite"] and self.last.get("step") == self.first)

    def backward(self, step: int) -> None:
        """Set the learning rate of update ``step + 1`` and compute its gradients."""
        self._set_lr(step)
        self._loss = self._step.backward(*self._batches(step))

    def observe(self, step: int) -> None:
        """Measure gradients and weights between backward and the update."""
        self._observer.before_update()

    def update(self, step: int) -> None:
        """Make update ``step + 1``: clip the gradient, run the optimizer and the methods, update the weight average."""
        self._step.clip()
        self._optimizer.step()
        if self._average:
            self._average.update()
        self._finite &= torch.isfinite(self._loss)

    def record(self, step: int) -> bool:
        """Write the log line of the state after ``step`` updates.

        Returns:
            False if the run has diverged; a checkpoint that says so is then written too.
        """
        self._observer.after_update()
        (is_finite,) = self._observer.record(step, self._finite)
        if self.any_true(not is_finite):
            self._observer.save(step, [False])
            return False
        return True

    def save(self, step: int) -> None:
        """Write a checkpoint of the state after ``step`` updates."""
        self._observer.save(step, self._finite)

    def any_true(self, flag: bool) -> bool:
        """Return True if ``flag`` is true in at least one of the processes that share the run."""
        return self._group.any_true(flag)

    def _set_lr(self, step: int) -> None:
        """Set the learning rate of update ``step + 1`` in every group of the optimizer."""
        factor = self._clock.lr_factor(step)
        for group, lr in zip(self._optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * factor
