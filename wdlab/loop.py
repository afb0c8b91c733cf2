"""The one training loop: a fixed order of moments in a step, whatever the method, the data set or the figure."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wdlab import checkpoint
from wdlab.data import Batches, Data
from wdlab.device import Machine
from wdlab.errors import ConfigError
from wdlab.metrics import Metrics
from wdlab.progress import Progress
from wdlab.recorder import Recorder
from wdlab.regularizers import Regularizer
from wdlab.runs import RunDirectory

MOST = 10**12
KEYS = ("steps", "batch_size", "log_every", "eval_every")


@dataclass
class Experiment:
    """Everything a run trains with, built by ``train``."""

    model: nn.Module
    data: Data
    optimizer: torch.optim.Optimizer
    regularizer: Regularizer
    lr_factor: Callable[[int, int, int], float]
    machine: Machine
    seed: int


def check(config: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a ``train`` value that is not a whole number from 1 to ``MOST``."""
    for key in KEYS:
        value = config[key]
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
            raise ConfigError(f"train.{key}={value}: must be a whole number between 1 and {MOST}")


def fit(
    experiment: Experiment,
    config: Mapping[str, Any],
    run: RunDirectory,
    recorder: Recorder,
    start: dict[str, Any] | None,
    checkpoint_seconds: float,
    stop_requested: Callable[[], bool] = lambda: False,
) -> str:
    """Train to ``config["steps"]`` updates, from the checkpoint ``start`` if there is one.

    A log line belongs to the state after ``step`` updates; there is one at step 0, every ``log_every`` updates (with
    the whole splits evaluated every ``eval_every``), and at the last step with everything.

    Returns:
        ``done``, ``diverged`` (the loss was not finite somewhere since the last log point) or ``interrupted``
        (``stop_requested`` said so; a checkpoint was written).
    """
    model, optimizer, regularizer = experiment.model, experiment.optimizer, experiment.regularizer
    device, steps = experiment.machine.device, config["steps"]
    batches = Batches(experiment.data.train, config["batch_size"], experiment.seed)
    metrics = Metrics(model, experiment.data, regularizer)
    base_lrs = [group["lr"] for group in optimizer.param_groups]
    regularizer.set_steps_per_epoch(batches.steps_per_epoch)
    first = 0
    if start is not None:
        first = start["step"]
        model.load_state_dict(start["model"])
        optimizer.load_state_dict(start["optimizer"])
        regularizer.load_state_dict(start["regularizer"])
        torch.set_rng_state(start["rng"])

    def set_lr(step: int) -> None:
        factor = experiment.lr_factor(step, steps, batches.steps_per_epoch)
        for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
            group["lr"] = lr * factor

    def record(step: int) -> None:
        everything = step % config["eval_every"] == 0 or step == steps
        clock = {"step": step, "epoch": step / batches.steps_per_epoch}
        setting = {"lr": optimizer.param_groups[0]["lr"], "strength": regularizer.strength_in_force}
        recorder.log(clock | setting | metrics.measure(everything))

    def save(step: int) -> None:
        state = {"step": step, "records_bytes": recorder.sync(), "rng": torch.get_rng_state(), "finite": bool(finite)}
        parts = {"model": model, "optimizer": optimizer, "regularizer": regularizer}
        checkpoint.save(run, state | {name: part.state_dict() for name, part in parts.items()})

    finite = torch.tensor(start is None or start["finite"], device=device)
    saved_at = time.monotonic()
    model.train()
    set_lr(first)
    if start is None:
        record(0)
    elif not finite and recorder.last["step"] == first:
        return "diverged"  # and was stopped before it could say so
    with regularizer.attach(optimizer), Progress(run.name, steps, first) as progress:
        for step in range(first, steps):
            done = step + 1
            due = done % config["log_every"] == 0 or done % config["eval_every"] == 0 or done == steps
            set_lr(step)
            inputs, labels = batches(step)
            with experiment.machine.autocast():
                loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if due:
                metrics.before_step()
            optimizer.step()
            finite &= torch.isfinite(loss.detach())
            if due:
                metrics.after_step()
                record(done)
                progress.update(done, recorder.last)
                if not finite:
                    save(done)
                    return "diverged"
            stopping = stop_requested()
            if done == steps or stopping or time.monotonic() - saved_at >= checkpoint_seconds:
                save(done)
                saved_at = time.monotonic()
            if stopping and done < steps:
                return "interrupted"
    return "done"
