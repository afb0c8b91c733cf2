"""The log points of a run: measure, record, save a checkpoint."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from wdlab.engine.averaging import Average
from wdlab.engine.experiment import Experiment
from wdlab.metrics import SHARPNESS_EXAMPLES, Evaluated, Metrics
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.recorder import Recorder
from wdlab.settings import TrainSettings

LOG_INTERVALS = ("log_every", "eval_every", "sharpness_every")  # settings, each the distance between two events
FINITE_KEYS = ("norm/weight_l2", "train/loss")  # where these are not finite, a run has diverged


def is_due(settings: TrainSettings, event: str, step: int) -> bool:
    """Return True if an event happens after update ``step``: every ``settings.<event>`` updates, and after the last."""
    every = getattr(settings, event)
    return every is not None and (step % every == 0 or step == settings.steps)


class RunObserver:
    """Measures, records and saves a run.

    Args:
        experiment: what the run trains with.
        settings: of the training.
        run: the directory of the run.
        recorder: of its records.
        steps_per_epoch: number of updates in an epoch.
        average: of the weights, if one is kept.
    """

    def __init__(
        self,
        experiment: Experiment,
        settings: TrainSettings,
        run: RunDirectory,
        recorder: Recorder,
        steps_per_epoch: int,
        average: Average | None = None,
    ) -> None:
        self._average = average
        self._experiment, self._settings, self._run, self._recorder = experiment, settings, run, recorder
        self._steps_per_epoch = steps_per_epoch
        self._metrics = Metrics(
            experiment.model,
            experiment.data,
            experiment.regularizer,
            experiment.machine.autocast,
            settings.sharpness_examples or SHARPNESS_EXAMPLES,
            average.refresh_batch_statistics if average else None,
        )

    @property
    def last(self) -> dict[str, Any]:
        """The newest log line."""
        return self._recorder.last

    @property
    def last_step(self) -> int:
        """The step of the newest log line."""
        return self.last["step"]

    def before_update(self) -> None:
        """Measure what is there between backward and the update, see ``Metrics.before_step``."""
        self._metrics.before_step()

    def after_update(self) -> None:
        """Measure the update, see ``Metrics.after_step``."""
        self._metrics.after_step()

    def record(self, step: int, finite: Tensor, evaluated: Evaluated | None = None) -> bool:
        """Write the log line of the state after ``step`` updates.

        The device is waited for once (and for what the sharpness takes, where it is due).

        Args:
            step: number of updates made.
            finite: whether the losses so far were finite, a boolean 0-dim tensor.
            evaluated: losses and accuracies of the whole splits, if they have been measured already.

        Returns:
            True if the losses so far, and the weights and the training loss of this line, are finite.
        """
        clock = {"step": step, "epoch": step / self._steps_per_epoch}
        lr = self._experiment.optimizer.param_groups[0]["lr"]
        strength = self._experiment.regularizer.strength_on_device
        on_device = {"finite": finite} | ({"strength": strength} if isinstance(strength, Tensor) else {})
        full = (is_due(self._settings, event, step) for event in ("eval_every", "sharpness_every"))
        values = self._metrics.measure(*full, evaluated, on_device)
        losses_are_finite = bool(values.pop("finite"))
        self._recorder.log(clock | {"lr": lr, "strength": values.pop("strength", strength)} | values)
        return losses_are_finite and all(math.isfinite(values.get(key, 0.0)) for key in FINITE_KEYS)

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


class NullObserver:
    """The log of a process that does not lead: nothing is measured, recorded or saved."""

    last: ClassVar[dict[str, Any]] = {}
    last_step = None

    def before_update(self) -> None:
        """Do nothing."""

    def after_update(self) -> None:
        """Do nothing."""

    def record(self, step: int, finite: Tensor) -> bool:
        """Return True if the losses so far were finite."""
        return bool(finite)

    def save(self, step: int, finite: Tensor | bool) -> None:
        """Do nothing."""
