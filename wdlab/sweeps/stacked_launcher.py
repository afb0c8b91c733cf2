"""The launcher ``hydra/launcher=stacked``: trains runs in stacks where possible, and other runs one after another.

A stack is a group of runs that are trained side by side as one batched program (``wdlab.stacked``).
Chosen in ``configs/hydra/launcher/stacked.yaml``, registered by ``register``.
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
from omegaconf import DictConfig, OmegaConf, open_dict

from wdlab import interpolations
from wdlab.engine import stopping
from wdlab.errors import ConfigError
from wdlab.sweeps.compose import Composer
from wdlab.sweeps.job import SweepJob
from wdlab.sweeps.stacks import StackCandidate, group_into_stacks, log, train_stack


class StackedLauncher(Launcher):
    """Launcher that trains the runs of a sweep in stacks.

    Args:
        most: the largest number of runs in a stack.
    """

    def __init__(self, most: int = 32) -> None:
        self._most = most

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the sweep's objects that ``launch`` uses. Called by Hydra.

        Raises:
            ConfigError: if ``most`` is not a positive integer.
        """
        # Hydra has no public name for its basic launcher; its own YAML (hydra/launcher/basic) uses this name. Imported
        # here because Hydra executes the module again when it scans its plugins, which makes a new class; an import at
        # the top of this file would yield the old one.
        from hydra._internal.core_plugins.basic_launcher import BasicLauncher

        if type(self._most) is not int or self._most < 1:
            raise ConfigError(f"hydra.launcher.most={self._most}: must be a whole number >= 1")
        self._context, self._config = hydra_context, config
        self._jobs: list[SweepJob] | None = None
        self._stop_files: stopping.StopFiles | None = None
        self._local = BasicLauncher()
        self._local.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Train the stacks, then the runs that cannot be stacked, one after another. Called by the sweeper.

        Args:
            job_overrides: the overrides of each run.
            initial_job_idx: the number of the first run in the sweep.

        Returns:
            The results of the runs, in the order of ``job_overrides``.

        Raises:
            KeyboardInterrupt: if SIGINT or SIGTERM ended the sweep.
        """
        configure_log(self._config.hydra.job_logging, self._config.hydra.verbose)
        if sys.stderr.isatty():
            log.setLevel(logging.WARNING)  # the sweep shows its own progress bar
        given = [list(overrides) for overrides in job_overrides]
        prepared = self._jobs or [self._compose(*numbered) for numbered in enumerate(given, initial_job_idx)]
        jobs = [
            StackCandidate(overrides, job.config, job.directory, number=number)
            for number, (overrides, job) in enumerate(zip(given, prepared, strict=True), initial_job_idx)
        ]
        for stack in group_into_stacks(jobs, self._most):
            train_stack(stack, self._stop_files, self._report_start)
            for job in stack:
                if job.outcome is not None:
                    self._call_callbacks("on_job_end", job)
        alone = [job for job in jobs if job.outcome is None]
        for reason, count in Counter(job.reason for job in alone if job.reason).items():
            log.info("%d of %d runs not stacked: %s", count, len(jobs), reason)
        returned = self._local.launch([job.overrides for job in alone], initial_job_idx) if alone else []
        returned_alone = {id(job): result for job, result in zip(alone, returned, strict=True)}
        return [returned_alone.get(id(job)) or job.returned for job in jobs]

    def prepare(self, jobs: list[SweepJob], stop_files: stopping.StopFiles) -> None:
        """Receive the sweeper's jobs and stop files for the next ``launch``. Called by the sweeper.

        Args:
            jobs: the jobs to launch, in the same order; ``launch`` does not compose their configs again.
            stop_files: the stop files of the sweep.
        """
        self._jobs, self._stop_files = jobs, stop_files

    def _compose(self, number: int, overrides: list[str]) -> SweepJob:
        """Return a job, with ``${hydra:...}`` and ``${now:...}`` in its config replaced by fixed values.

        Args:
            number: the job's number in the sweep.
            overrides: the job's overrides, to which further overrides that set the fixed values are appended in place.
        """
        job = Composer(self._context.config_loader, self._config).job(overrides, number)
        overrides[:] = job.overrides
        return job

    def _report_start(self, job: StackCandidate) -> None:
        """Call ``on_job_start`` of Hydra's callbacks, at the start of a run in a stack."""
        self._call_callbacks("on_job_start", job, task_function=self._local.task_function)

    def _call_callbacks(self, moment: str, job: StackCandidate, **more: Any) -> None:
        """Call Hydra's callbacks for a run in a stack, as Hydra does for a run that is trained alone.

        Args:
            moment: the name of the callback method, such as ``on_job_end``.
            job: the run.
            more: the arguments of the method in addition to ``config``.
        """
        callbacks = self._context.callbacks
        if any(getattr(type(one), moment, None) is not getattr(Callback, moment) for one in callbacks.callbacks):
            config = self._context.config_loader.load_sweep_config(self._config, job.overrides)
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = job.number
            if moment == "on_job_end":
                more["job_return"] = job.returned
                more["job_return"].cfg = OmegaConf.create(dict(job.config))
            with interpolations.as_hydra_config(config):
                getattr(callbacks, moment)(config=config, **more)
