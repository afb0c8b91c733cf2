"""The one training loop: a fixed order of moments in a step, whatever the method, the data set or the figure."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wdlab.data import Batches
from wdlab.engine.averaging import Average
from wdlab.engine.device import Machine
from wdlab.engine.experiment import Experiment, set_random_state
from wdlab.engine.progress import Progress
from wdlab.engine.run_log import FULL_LOG_KEYS, NullLog, RunLog, is_due
from wdlab.metrics import cross_entropy
from wdlab.records.directory import RunDirectory
from wdlab.records.recorder import Recorder
from wdlab.strides import match_state


class Step:
    """What every update consists of, up to the optimizer's part: the loss of a batch and its gradient.

    Nothing in it waits for the device.

    Args:
        forward: the network in its training form.
        optimizer: that of all the network's parameters.
        machine: for the precision.
        clip_norm: largest norm of the gradient of the loss, None for any.
        label_smoothing: share of every label that is spread over all classes, None for none.
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
        """Puts the gradient of the mean cross-entropy (nats, smoothed) into ``p.grad``; returns the loss, detached."""
        with self._machine.autocast():
            loss = cross_entropy(self._forward(inputs), labels, label_smoothing=self._label_smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    def clip(self) -> None:
        """Scale the gradient down to ``clip_norm`` if it is longer."""
        if self._clip_norm is not None:
            parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self._clip_norm)


def fit(
    experiment: Experiment,
    config: Mapping[str, Any],
    run: RunDirectory,
    recorder: Recorder | None,
    start: dict[str, Any] | None,
    checkpoint_seconds: float,
    stop_requested: Callable[[], bool] = lambda: False,
) -> str:
    """Train to ``config["steps"]`` updates, from the checkpoint ``start`` if there is one.

    A log line belongs to the state after ``step`` updates; there is one at step 0, every ``log_every`` updates (with
    the whole splits evaluated every ``eval_every``, and the sharpness every ``sharpness_every``), and at the last step
    with everything that is measured at all. Of several processes the leader alone measures, records and saves, and the
    others have no ``recorder``.

    Returns:
        ``done``, ``diverged`` (the loss was not finite somewhere since the last log point, or is not there) or
        ``interrupted`` (``stop_requested`` said so in one of the processes; a checkpoint was written).
    """
    model, optimizer, regularizer = experiment.model, experiment.optimizer, experiment.regularizer
    machine, steps = experiment.machine, config["steps"]
    group = machine.group
    batches = Batches(experiment.data.train, config["batch_size"], experiment.seed, group.rank, group.size)
    base_lrs = [group["lr"] for group in optimizer.param_groups]
    regularizer.set_steps_per_epoch(batches.steps_per_epoch)
    average = Average(model, config["average_decay"]) if config["average_decay"] else None
    if start is not None:
        model.load_state_dict(start["model"])
        optimizer.load_state_dict(start["optimizer"])
        match_state(optimizer)
        regularizer.load_state_dict(start["regularizer"])
        if average:
            average.load_state_dict(start["average"])
    set_random_state(start, machine, experiment.seed)
    update = Step(machine.training_form(model), optimizer, machine, config["clip_norm"], config["label_smoothing"])
    keeper = NullLog()
    if recorder:
        keeper = RunLog(experiment, config, run, recorder, batches.steps_per_epoch, average)

    def set_lr(step: int) -> None:
        factor = experiment.lr_factor(step, steps, batches.steps_per_epoch)
        for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
            group["lr"] = lr * factor

    first = 0 if start is None else start["step"]
    finite = torch.tensor(start is None or start["finite"], device=machine.device)
    saved_at = time.monotonic()
    model.train()
    set_lr(first)
    if start is None:
        keeper.record(0, finite)
    elif group.any_true(not start["finite"] and keeper.last_step == first):
        return "diverged"  # and was stopped before it could say so
    with regularizer.attach(optimizer), Progress(run.name, steps, first) as progress:
        for step in range(first, steps):
            done = step + 1
            logged = any(is_due(config, every, done) for every in ("log_every", *FULL_LOG_KEYS))
            set_lr(step)
            loss = update.backward(*batches(step))
            if logged:
                keeper.before_step()
            update.clip()
            optimizer.step()
            if average:
                average.update()
            finite &= torch.isfinite(loss)
            if logged:
                keeper.after_step()
                all_finite = keeper.record(done, finite)
                progress.update(done, keeper.last)
                if group.any_true(not all_finite):
                    keeper.save(done, False)
                    return "diverged"
            stopping = group.any_true(stop_requested())
            if done == steps or stopping or time.monotonic() - saved_at >= checkpoint_seconds:
                keeper.save(done, finite)
                saved_at = time.monotonic()
            if stopping and done < steps:
                return "interrupted"
    return "done"
