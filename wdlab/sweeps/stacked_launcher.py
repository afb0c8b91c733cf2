"""``hydra/launcher=stacked``: what can be trained side by side is, the rest of a sweep as by ``local``.

Chosen in ``configs/hydra/launcher/stacked.yaml``, registered by ``sweep``.
"""

import logging
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, configure_log
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from wdlab import interpolations
from wdlab.engine import stopping
from wdlab.errors import ConfigError
from wdlab.sweeps.stacks import StackCandidate, group_into_stacks, log, train_stack


class StackedLauncher(Launcher):
    """Trains the runs of a sweep in stacks.

    Args:
        most: runs of one stack.
    """

    def __init__(self, most: int = 32) -> None:
        self._most = most

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra.

        Raises:
            ConfigError: for a number of runs that is none.
        """
        from hydra._internal.core_plugins.basic_launcher import BasicLauncher  # not before Hydra scanned its plugins

        if type(self._most) is not int or self._most < 1:
            raise ConfigError(f"hydra.launcher.most={self._most}: must be a whole number >= 1")
        self._context, self._config = hydra_context, config
        self._prepared: list[DictConfig] | None = None
        self._notice: stopping.StopFiles | None = None
        self._local = BasicLauncher()
        self._local.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Train the stacks, then what is left one by one.

        Raises:
            KeyboardInterrupt: if SIGINT or SIGTERM ended it.
        """
        configure_log(self._config.hydra.job_logging, self._config.hydra.verbose)
        if sys.stderr.isatty():
            log.setLevel(logging.WARNING)  # the sweep's own bar tells
        given = [list(overrides) for overrides in job_overrides]
        configs = self._prepared or [self._composed(*numbered) for numbered in enumerate(given, initial_job_idx)]
        jobs = [
            StackCandidate(overrides, config, number=number)
            for number, (overrides, config) in enumerate(zip(given, configs, strict=True), initial_job_idx)
        ]
        for stack in group_into_stacks(jobs, self._most):
            train_stack(stack, self._notice, self._tell_start)
            for job in stack:
                if job.outcome is not None:
                    self._tell("on_job_end", job, job_return=job.returned)
        alone = [job for job in jobs if job.outcome is None]
        for reason, count in Counter(job.reason for job in alone if job.reason).items():
            log.info("%d of %d runs by themselves: %s", count, len(jobs), reason)
        returned = self._local.launch([job.overrides for job in alone], initial_job_idx) if alone else []
        by_itself = {id(job): result for job, result in zip(alone, returned, strict=True)}
        return [by_itself.get(id(job)) or job.returned for job in jobs]

    def prepare(self, configs: list[DictConfig], notice: stopping.StopFiles) -> None:
        """Before ``launch``: the configs of its jobs, so that they need not be composed again; how they are stopped."""
        self._prepared, self._notice = configs, notice

    def _composed(self, number: int, overrides: list[str]) -> DictConfig:
        """The config of a job, to whose overrides the values are added that are its own."""
        loader = self._context.config_loader
        config = loader.load_sweep_config(self._config, overrides)
        with open_dict(config):
            del config["hydra"]  # as Hydra does it before a job
        interpolations.read_environment(config)
        overrides += interpolations.pin(config, loader, self._config, overrides, number)
        return config

    def _tell_start(self, job: "StackCandidate") -> None:
        self._tell("on_job_start", job, task_function=self._local.task_function)

    def _tell(self, moment: str, job: "StackCandidate", **more: Any) -> None:
        """Tell Hydra's callbacks about a run in a stack, as Hydra does for one by itself."""
        callbacks = self._context.callbacks
        if any(getattr(type(one), moment, None) is not getattr(Callback, moment) for one in callbacks.callbacks):
            config = self._context.config_loader.load_sweep_config(self._config, job.overrides)
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = job.number
            with interpolations.as_hydra_config(config):
                getattr(callbacks, moment)(config=config, **more)
