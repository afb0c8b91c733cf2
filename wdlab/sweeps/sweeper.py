"""``-m``: a Hydra sweeper that checks every job before the first one trains, skips what is done, and sums up.

Chosen in ``configs/train.yaml``; works with any Hydra launcher. Besides the ordinary ``key=a,b`` grid it takes
``hydra.sweeper.jobs=FILE``, a JSON list of override lists, for settings that are paired rather than crossed.
"""

import copy
import json
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from wdlab import interpolations
from wdlab.engine import parallel, stopping
from wdlab.errors import ConfigError, explain
from wdlab.sweeps.compose import Composer
from wdlab.sweeps.job import SweepJob
from wdlab.sweeps.progress import SweepProgress
from wdlab.sweeps.slurm import SlurmLauncher
from wdlab.sweeps.stacked_launcher import StackedLauncher
from wdlab.sweeps.summary import print_counts, sum_up


class Sweep(Sweeper):
    """See the module. ``params`` maps keys to sweep strings, as in Hydra's basic sweeper."""

    def __init__(self, params: dict[str, str] | None = None, jobs: str | None = None) -> None:
        self.params = params or {}
        self.jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.hydra_context, self.config = hydra_context, config
        with interpolations.as_hydra_config(copy.deepcopy(config)):
            interpolations.read_environment(config["hydra"]["launcher"])
            self.launcher = Plugins.instance().instantiate_launcher(
                hydra_context=hydra_context, task_function=task_function, config=config
            )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs that are not finished yet.

        Raises:
            WdlabError: before any training, if a job's config cannot be used.
            RunFailed: at the end, naming the runs that did not end well.
            KeyboardInterrupt: if SIGINT or SIGTERM ended it.
        """
        from wdlab.validation import code_error

        if parallel.group().size > 1:
            raise ConfigError("-m: torchrun shares one run between processes; start a sweep without it")
        composer = Composer(self.hydra_context.config_loader, self.config)
        by_run: dict[Path, SweepJob] = {}  # two combinations may be the same run
        jobs = []
        for number, overrides in enumerate(self._job_overrides(arguments)):
            job = composer.job(overrides, number)
            jobs.append(by_run.setdefault(job.directory.path.absolute(), job))
        if not jobs:
            raise ConfigError("-m: this sweep is empty, no combination of values is left")
        todo = [job for job in by_run.values() if not job.directory.finished]
        here = not isinstance(self.launcher, SlurmLauncher)
        for job in todo:
            code_error(job.config, here)  # its run will say it again, and be recorded
            job.status_before = job.directory.read("status.json")
        finished, same = len(by_run) - len(todo), len(jobs) - len(by_run)
        twice = f", {same} the same as others" if same else ""
        print(f"{len(jobs)} runs: {finished} finished before, {len(todo)} to do{twice}", flush=True)
        if todo:
            self._run(todo)
        sum_up(jobs)

    def _run(self, todo: list[SweepJob]) -> None:
        """Launch the jobs; KeyboardInterrupt, with a summary, if that was interrupted."""
        notice = stopping.StopFiles.new(todo[0].directory.path.parent)
        place = interpolations.typed(str(notice.place))
        self.config["hydra"]["overrides"]["hydra"].append(f"++hydra.job.env_set.{stopping.SWEEP}={place}")
        try:
            progress = SweepProgress([(job.directory, job.config["train"]["steps"]) for job in todo])
            with stopping.passed_on(notice), progress:
                self._launch_all(todo, notice)
            if notice.interrupted:
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            print_counts(todo)
            raise
        finally:
            notice.clear()

    def _launch_all(self, todo: list[SweepJob], notice: stopping.StopFiles) -> None:
        """Launch the jobs. A worker that dies takes its launch with it: those that ran come last then, each alone."""
        alone: list[SweepJob] = []
        while todo and not self._launch(todo, notice):
            left = [job for job in todo if not job.ended]
            died = [job for job in left if job.directory.status == "running"] or left
            alone += died
            todo = [job for job in left if job not in died]
        for job in alone:
            self._launch([job], notice)

    def _launch(self, jobs: list[SweepJob], notice: stopping.StopFiles) -> bool:
        """Whether all jobs came back; not if a worker died. Any other error of the launcher is told, and that is it."""
        if isinstance(self.launcher, StackedLauncher):
            self.launcher.prepare([job.config for job in jobs], notice)
        try:
            returned = self.launcher.launch([job.overrides for job in jobs], initial_job_idx=0)
        except BrokenProcessPool:
            if any(job.config["fail_fast"] for job in jobs):
                notice.set_failed()
            return notice.interrupted
        except ConfigError:
            raise
        except Exception as error:
            print(f"the launcher failed: {explain(error) or repr(error)}", flush=True)
            return True
        for job, result in zip(jobs, returned, strict=True):
            job.outcome = result._return_value if result.status == JobStatus.FAILED else result.return_value
        return True

    def _job_overrides(self, arguments: list[str]) -> list[list[str]]:
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # not before Hydra has scanned its plugins

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        if not isinstance(self.params, Mapping):
            raise ConfigError(f"hydra.sweeper.params={self.params}: must be a group of keys")
        swept = [f"{key}={values}" for key, values in self.params.items()]
        (grid,) = BasicSweeper.split_arguments(parser.parse_overrides([*swept, *arguments]), None)
        if self.jobs is None:
            return grid
        try:
            listed = json.loads(Path(self.jobs).read_text())
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"hydra.sweeper.jobs={self.jobs}: not a JSON list of override lists ({error})") from error
        if not (isinstance(listed, list) and all(isinstance(job, list) for job in listed)):
            raise ConfigError(f"hydra.sweeper.jobs={self.jobs}: not a JSON list of override lists")
        listed = [[str(override) for override in job] for job in listed]
        return [[*point, *job] for point in grid for job in listed]
