"""The measurements, log lines and checkpoints of one run."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from wdlab.engine.averaging import WeightAverage
from wdlab.engine.experiment import Experiment
from wdlab.metrics import SHARPNESS_EXAMPLES, Metrics, ResultsBySplit
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.recorder import Recorder
from wdlab.settings import TrainSettings

LOG_INTERVALS = ("log_every", "eval_every", "sharpness_every")  # settings: updates from one event to the next
FINITE_KEYS = ("norm/weight_l2", "train/loss")  # metrics of a log line; if one is not finite, the run has diverged


def is_due(settings: TrainSettings, event: str, step: int) -> bool:
    """Return True if an event happens at ``step``: every ``settings.<event>`` updates, and after the last update.

    Args:
        settings: the settings of ``train``.
        event: one of ``LOG_INTERVALS``. An event whose interval is None never happens.
        step: the number of updates made.
    """
    every = getattr(settings, event)
    return every is not None and (step % every == 0 or step == settings.steps)


class RunObserver:
    """The part of a run that measures it, writes its log lines and saves its checkpoints.

    Args:
        experiment: the objects that the run trains with.
        settings: the settings of ``train``.
        run: the directory of the run.
        recorder: the recorder of the run's log lines.
        steps_per_epoch: the number of updates in an epoch.
        average: the average of the weights, None if none is kept.
    """

    def __init__(
        self,
        experiment: Experiment,
        settings: TrainSettings,
        run: RunDirectory,
        recorder: Recorder,
        steps_per_epoch: int,
        average: WeightAverage | None = None,
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
        """The newest log line, {} if there is none."""
        return self._recorder.last

    @property
    def last_step(self) -> int:
        """The step of the newest log line."""
        return self.last["step"]

    def before_update(self) -> None:
        """Measure gradients and weights between backward and the update, see ``Metrics.before_step``."""
        self._metrics.before_step()

    def after_update(self) -> None:
        """Measure the update that was made, see ``Metrics.after_step``."""
        self._metrics.after_step()

    def record(self, step: int, finite: Tensor, evaluated: ResultsBySplit | None = None) -> bool:
        """Write the log line of the state after ``step`` updates.

        All numbers are read from the device in one transfer. The sharpness, at steps where it is due, needs more.

        Args:
            step: the number of updates made.
            finite: a boolean 0-dim tensor, True if all losses of the updates so far were finite.
            evaluated: losses and accuracies of the whole splits by split; None if they have not been measured yet.

        Returns:
            True if all losses so far, the weights and (if this log line contains it) the training loss of the whole
            split are finite.
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
        """Flush the records and write a checkpoint of the state after ``step`` updates.

        Args:
            step: the number of updates made.
            finite: True if the run has not diverged; stored in the checkpoint.
        """
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
    """Stand-in for ``RunObserver`` in a process that does not lead. It measures, records and saves nothing."""

    last: ClassVar[dict[str, Any]] = {}
    last_step = None

    def before_update(self) -> None:
        """Measure nothing."""

    def after_update(self) -> None:
        """Measure nothing."""

    def record(self, step: int, finite: Tensor) -> bool:
        """Write nothing; return ``finite``, which is True if all losses so far were finite."""
        return bool(finite)

    def save(self, step: int, finite: Tensor | bool) -> None:
        """Write nothing."""
