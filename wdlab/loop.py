"""The one training loop: a fixed order of moments in a step, whatever the method, the data set or the figure."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wdlab import checkpoint
from wdlab.averaging import Average
from wdlab.data import Batches, Data
from wdlab.device import Machine
from wdlab.errors import ConfigError
from wdlab.metrics import SHARPNESS_EXAMPLES, Evaluated, Metrics, cross_entropy
from wdlab.progress import Progress
from wdlab.recorder import Recorder
from wdlab.regularizers import Regularizer
from wdlab.runs import RunDirectory
from wdlab.strides import match_state

MOST = 10**12
FULLER = ("eval_every", "sharpness_every")  # how often a log line has more than what is cheap
WHOLE = ("steps", "batch_size", "log_every", "eval_every")
WHOLE_OR_NULL = ("sharpness_every", "sharpness_examples")
NUMBER_OR_NULL: dict[str, tuple[Callable[[float], bool], str]] = {
    "clip_norm": (lambda norm: norm > 0, "> 0"),
    "label_smoothing": (lambda share: 0 <= share < 1, "from 0 to below 1"),
    "average_decay": (lambda decay: 0 < decay < 1, "between 0 and 1"),
}
KEYS = (*WHOLE, *NUMBER_OR_NULL, *WHOLE_OR_NULL)


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
    """Raise a ConfigError for a ``train`` value that is no whole number from 1 to ``MOST``, no norm or no share."""
    for key in (*WHOLE, *WHOLE_OR_NULL):
        value = config[key]
        if value is None and key in WHOLE_OR_NULL:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
            null = "null or " if key in WHOLE_OR_NULL else ""
            raise ConfigError(f"train.{key}={value}: must be {null}a whole number between 1 and {MOST}")
    for key, (allowed, words) in NUMBER_OR_NULL.items():
        value = config[key]
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not allowed(value):
            raise ConfigError(f"train.{key}={value}: must be null or a number {words}")


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
    _set_random_state(start, machine, experiment.seed)
    update = Step(machine.training_form(model), optimizer, machine, config["clip_norm"], config["label_smoothing"])
    keeper = _NoKeeper()
    if recorder:
        keeper = Keeper(experiment, config, run, recorder, batches.steps_per_epoch, average)

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
    elif group.any_says(not start["finite"] and keeper.last_step == first):
        return "diverged"  # and was stopped before it could say so
    with regularizer.attach(optimizer), Progress(run.name, steps, first) as progress:
        for step in range(first, steps):
            done = step + 1
            logged = any(due(config, every, done) for every in ("log_every", *FULLER))
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
                if group.any_says(not all_finite):
                    keeper.save(done, False)
                    return "diverged"
            stopping = group.any_says(stop_requested())
            if done == steps or stopping or time.monotonic() - saved_at >= checkpoint_seconds:
                keeper.save(done, finite)
                saved_at = time.monotonic()
            if stopping and done < steps:
                return "interrupted"
    return "done"


def due(config: Mapping[str, Any], every: str, step: int) -> bool:
    """Whether what ``config[every]`` gives the distance of is due behind update ``step``; at the last all is."""
    return config[every] is not None and (step % config[every] == 0 or step == config["steps"])


class Keeper:
    """Measures, records and saves a run."""

    def __init__(
        self,
        experiment: Experiment,
        config: Mapping[str, Any],
        run: RunDirectory,
        recorder: Recorder,
        steps_per_epoch: int,
        average: Average | None = None,
    ) -> None:
        self._average = average
        self._experiment, self._config, self._run, self._recorder = experiment, config, run, recorder
        self._steps_per_epoch = steps_per_epoch
        self._metrics = Metrics(
            experiment.model,
            experiment.data,
            experiment.regularizer,
            experiment.machine.autocast,
            config["sharpness_examples"] or SHARPNESS_EXAMPLES,
            average.settle if average else None,
        )
        self.before_step, self.after_step = self._metrics.before_step, self._metrics.after_step

    @property
    def last(self) -> dict[str, Any]:
        """The newest log line."""
        return self._recorder.last

    @property
    def last_step(self) -> int:
        return self.last["step"]

    @property
    def last_is_finite(self) -> bool:
        """Whether weights and training loss of the newest log line are, as far as it has them."""
        return all(self.last.get(key, 0.0) is not None for key in ("norm/weight_l2", "train/loss"))

    def record(self, step: int, finite: Tensor, evaluated: Evaluated | None = None) -> bool:
        """Log the state after ``step`` updates, with what is due; ``evaluated`` if the whole splits have been.

        The device is waited for once (and for what the sharpness takes, where it is due).

        Args:
            finite: whether the losses so far were, a boolean 0-dim tensor.

        Returns:
            Whether they were, and the weights and training loss of this log line are.
        """
        clock = {"step": step, "epoch": step / self._steps_per_epoch}
        lr = self._experiment.optimizer.param_groups[0]["lr"]
        strength = self._experiment.regularizer.strength_on_device
        beside = {"finite": finite} | ({"strength": strength} if isinstance(strength, Tensor) else {})
        fuller = (due(self._config, every, step) for every in FULLER)
        values = self._metrics.measure(*fuller, evaluated, beside)
        losses_are_finite = bool(values.pop("finite"))
        self._recorder.log(clock | {"lr": lr, "strength": values.pop("strength", strength)} | values)
        return losses_are_finite and self.last_is_finite

    def save(self, step: int, finite: Tensor | bool) -> None:
        """Write a checkpoint of the state after ``step`` updates."""
        device = self._experiment.machine.device
        state = {"step": step, "records_bytes": self._recorder.sync(), "finite": bool(finite)}
        state |= {"rng": torch.get_rng_state(), "data_checksum": self._experiment.data.checksum}
        if device.type != "cpu":
            state |= {f"rng_{device.type}": torch.get_device_module(device).get_rng_state(device)}
        parts = ("model", "optimizer", "regularizer")
        if self._average:
            state["average"] = self._average.state_dict()
        checkpoint.save(self._run, state | {name: getattr(self._experiment, name).state_dict() for name in parts})


class _NoKeeper:
    """For the processes that do not lead."""

    last: ClassVar[dict[str, Any]] = {}
    last_step = None

    def before_step(self) -> None: ...

    def after_step(self) -> None: ...

    def record(self, step: int, finite: Tensor) -> bool:
        return bool(finite)

    def save(self, step: int, finite: Tensor | bool) -> None: ...


def _set_random_state(start: dict[str, Any] | None, machine: Machine, seed: int) -> None:
    """Of dropout. A process that does not lead draws other masks than the leader."""
    if not machine.group.leads:
        torch.manual_seed(hash((seed, machine.group.rank, start["step"] if start else 0)) % 2**63)
    elif start is not None:
        torch.set_rng_state(start["rng"])
        of_device = start.get(f"rng_{machine.device.type}")
        if of_device is not None:
            torch.get_device_module(machine.device).set_rng_state(of_device, machine.device)
