"""The measurements, log lines and checkpoints of one run, or of several that are trained side by side."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wdlab.engine.averaging import WeightAverage
from wdlab.engine.experiment import Experiment
from wdlab.metrics import SHARPNESS_EXAMPLES, MethodOfRuns, MetricsOfRuns, ResultsBySplit, equilibrium
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.recorder import Recorder
from wdlab.settings import TrainSettings

# settings: updates from one event to the next
LOG_INTERVALS = ("log_every", "eval_every", "sharpness_every", "full_gradient_every")
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


class ObservedRun(NamedTuple):
    """A run to be observed.

    Args:
        experiment: the objects that the run trains with.
        directory: the directory of the run.
        recorder: the recorder of the run's log lines.
    """

    experiment: Experiment
    directory: RunDirectory
    recorder: Recorder


class RunObserver:
    """The part of a program that measures its runs, writes their log lines and saves their checkpoints.

    Args:
        runs: a run, or several that are trained side by side.
        settings: the settings of ``train``, which all runs share.
        steps_per_epoch: the number of updates in an epoch.
        average: the average of the weights of a single run, None if none is kept.
        tensor: as in ``MetricsOfRuns``.
        methods: as in ``MetricsOfRuns``.
    """

    def __init__(
        self,
        runs: Sequence[ObservedRun],
        settings: TrainSettings,
        steps_per_epoch: int,
        average: WeightAverage | None = None,
        tensor: Callable[[Tensor], Tensor] | None = None,
        methods: Sequence[MethodOfRuns] = (),
    ) -> None:
        self._average, self._runs, self._settings = average, runs, settings
        self._steps_per_epoch = steps_per_epoch
        experiments = [run.experiment for run in runs]
        self._metrics = MetricsOfRuns(
            [experiment.model for experiment in experiments],
            experiments[0].data,
            [experiment.regularizer for experiment in experiments],
            experiments[0].machine.autocast,
            settings.sharpness_examples or SHARPNESS_EXAMPLES,
            average.refresh_batch_statistics if average else None,
            tensor,
            methods,
        )

    def last(self, run: int = 0) -> dict[str, Any]:
        """Return the newest log line of the run at a position, {} if it has none."""
        return self._runs[run].recorder.last

    def before_update(self) -> None:
        """Measure gradients and weights between backward and the update, see ``MetricsOfRuns.before_step``."""
        self._metrics.before_step()

    def after_update(self) -> None:
        """Measure the update that was made, see ``MetricsOfRuns.after_step``."""
        self._metrics.after_step()

    def record(
        self, step: int, finite: Tensor, evaluated: ResultsBySplit | None = None, which: Sequence[int] = (0,)
    ) -> list[bool]:
        """Write the log lines of the state after ``step`` updates.

        All numbers are read from the device in one transfer. The sharpness and the gradient of
        the whole split, at steps where they are due, need more.

        Args:
            step: the number of updates made.
            finite: for each run, True if all losses of its updates so far were finite: boolean (runs,).
            evaluated: losses and accuracies of the whole splits by split; None if they have not been measured yet.
            which: the positions of the runs to write log lines for.

        Returns:
            For each run of ``which``, True if all losses so far, the weights and (if this log line contains it) the
            training loss of the whole split are finite.
        """
        clock = {"step": step, "epoch": step / self._steps_per_epoch}
        strengths = [run.experiment.regularizer.strength_on_device for run in self._runs]
        on_device = {"finite": finite}
        if depend_on_gradients := [s for s in strengths if isinstance(s, Tensor)]:
            zero = torch.zeros_like(depend_on_gradients[0])  # in place of numbers, which need no transfer
            on_device["strength"] = torch.stack([s if isinstance(s, Tensor) else zero for s in strengths])
        also_due = (is_due(self._settings, event, step) for event in LOG_INTERVALS[1:])
        lines = self._metrics.measure(*also_due, evaluated, on_device, which)
        are_finite = []
        for k, values in zip(which, lines, strict=True):
            experiment, strength = self._runs[k].experiment, strengths[k]
            group = experiment.optimizer.param_groups[0]
            losses_are_finite, read = bool(values.pop("finite")), values.pop("strength", None)
            line = clock | {"lr": group["lr"], "strength": read if isinstance(strength, Tensor) else strength} | values
            line |= equilibrium.of_line(experiment.regularizer, group, self._steps_per_epoch, line)
            self._runs[k].recorder.log(line)
            are_finite.append(losses_are_finite and all(math.isfinite(values.get(key, 0.0)) for key in FINITE_KEYS))
        return are_finite

    def save(self, step: int, finite: Tensor | Sequence[bool], which: Sequence[int] = (0,)) -> None:
        """Flush the records and write a checkpoint of the state after ``step`` updates.

        Args:
            step: the number of updates made.
            finite: for each run, True if it has not diverged, (runs,); stored in the checkpoint.
            which: the positions of the runs to save.
        """
        rng = {"rng": torch.get_rng_state()}
        device = self._runs[0].experiment.machine.device
        if device.type != "cpu":
            rng |= {f"rng_{device.type}": torch.get_device_module(device).get_rng_state(device)}
        for k in which:
            experiment, directory, recorder = self._runs[k]
            state = {"step": step, "records_bytes": recorder.sync(), "finite": bool(finite[k])} | rng
            state["data_checksum"] = experiment.data.checksum
            parts = ("model", "optimizer", "regularizer")
            if self._average:
                state["average"] = self._average.state_dict()
            checkpoint.save(directory, state | {name: getattr(experiment, name).state_dict() for name in parts})


class NullObserver:
    """Stand-in for ``RunObserver`` in a process that does not lead. It measures, records and saves nothing."""

    def last(self, run: int = 0) -> dict[str, Any]:
        """Return {}."""
        return {}

    def before_update(self) -> None:
        """Measure nothing."""

    def after_update(self) -> None:
        """Measure nothing."""

    def record(self, step: int, finite: Tensor) -> list[bool]:
        """Write nothing; return ``finite`` as a list, which is True if all losses so far were finite."""
        return finite.tolist()

    def save(self, step: int, finite: Tensor | Sequence[bool]) -> None:
        """Write nothing."""
