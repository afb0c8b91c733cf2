"""What happens at the log points of a run: measure, record, save a checkpoint. Called by the loop."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from wdlab.engine.averaging import Average
from wdlab.engine.experiment import Experiment
from wdlab.metrics import SHARPNESS_EXAMPLES, Evaluated, Metrics
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.recorder import Recorder

FULL_LOG_KEYS = ("eval_every", "sharpness_every")  # how often a log line has more than what is cheap


def is_due(config: Mapping[str, Any], every: str, step: int) -> bool:
    """Whether what ``config[every]`` gives the distance of is due behind update ``step``; at the last all is."""
    return config[every] is not None and (step % config[every] == 0 or step == config["steps"])


class RunLog:
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
            average.refresh_batch_statistics if average else None,
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
        fuller = (is_due(self._config, every, step) for every in FULL_LOG_KEYS)
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


class NullLog:
    """For the processes that do not lead."""

    last: ClassVar[dict[str, Any]] = {}
    last_step = None

    def before_step(self) -> None: ...

    def after_step(self) -> None: ...

    def record(self, step: int, finite: Tensor) -> bool:
        return bool(finite)

    def save(self, step: int, finite: Tensor | bool) -> None: ...
