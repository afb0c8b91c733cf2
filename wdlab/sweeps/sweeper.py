"""The Hydra sweeper of ``-m``: checks all jobs before any run is trained, skips finished runs, prints a summary.

Chosen in ``configs/train.yaml``; works with any Hydra launcher. In addition to the ordinary grid, ``key=a,b``, it takes
``hydra.sweeper.jobs=FILE``, a JSON list of override lists, for settings that are paired rather than crossed, and
``key=interval(a,b)``, of which ``hydra.sweeper.trials`` values are taken (``wdlab.search``).
"""

import copy
import itertools
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

from wdlab import interpolations, process, search
from wdlab.engine import parallel, stopping
from wdlab.errors import ConfigError, explain
from wdlab.sweeps.compose import Composer
from wdlab.sweeps.job import SweepJob
from wdlab.sweeps.progress import SweepProgress
from wdlab.sweeps.slurm import SlurmLauncher
from wdlab.sweeps.stacked_launcher import StackedLauncher
from wdlab.sweeps.summary import print_counts, print_summary
from wdlab.validation import check_jobs

MANY_JOBS = 200  # from this number on, the garbage of composing them is collected


class Sweep(Sweeper):
    """The Hydra sweeper of ``-m``: checks all jobs, has unfinished runs trained by a launcher, prints a summary.

    Args:
        params: swept values by key, as in Hydra's basic sweeper: ``{"seed": "0,1"}``; None for no values.
        jobs: the path of a JSON file with a list of override lists; None for no file.
        trials: the number of values of every interval; None if there is no interval.
        search_seed: the seed of the values of intervals.
    """

    def __init__(
        self,
        params: dict[str, str] | None = None,
        jobs: str | None = None,
        trials: int | None = None,
        search_seed: int = 0,
    ) -> None:
        self.params = params or {}
        self.jobs = jobs
        self.trials, self.search_seed = trials, search_seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the launcher. Called by Hydra."""
        self.hydra_context, self.config = hydra_context, config
        with interpolations.as_hydra_config(copy.deepcopy(config)):
            interpolations.read_environment(config["hydra"]["launcher"])
            self.launcher = Plugins.instance().instantiate_launcher(
                hydra_context=hydra_context, task_function=task_function, config=config
            )

    def sweep(self, arguments: list[str]) -> Any:
        """Check all jobs, run those that are not finished, and print the summary. Called by Hydra.

        Args:
            arguments: the overrides of the command line.

        Raises:
            WdlabError: before any run is trained, if a job's config cannot be used.
            RunFailed: at the end, if a run has failed, diverged or lost its process.
            KeyboardInterrupt: if SIGINT or SIGTERM ended the sweep.
        """
        if parallel.process_group().size > 1:
            raise ConfigError("-m: torchrun shares one run between processes; start a sweep without it")
        composer = Composer(self.hydra_context.config_loader, self.config)
        by_run: dict[Path, SweepJob] = {}  # two combinations of values may make the same run
        jobs = []
        lines = self._job_overrides(arguments)
        for number, overrides in enumerate(lines):
            if number == MANY_JOBS:
                process.resume_collections()
            try:
                job = composer.job(overrides, number)
            except Exception as error:
                told = explain(error) or ""
                swept = [word for word in overrides if any(word not in line for line in lines)]
                choices = " ".join(composer.chosen(swept))
                if "unknown key" not in told or not choices:
                    raise
                raise ConfigError(f"{told} ({choices})") from error
            jobs.append(by_run.setdefault(job.directory.path.absolute(), job))
        if not jobs:
            raise ConfigError("-m: this sweep is empty, no combination of values is left")
        todo = [job for job in by_run.values() if not job.directory.finished]
        here = not isinstance(self.launcher, SlurmLauncher)
        check_jobs(((job.config, job.directory) for job in todo), here)
        for job in todo:
            job.status_before = job.directory.read("status.json")
        finished, same = len(by_run) - len(todo), len(jobs) - len(by_run)
        twice = f", {same} the same as others" if same else ""
        print(f"{len(jobs)} runs: {finished} finished before, {len(todo)} to do{twice}", flush=True)
        if todo:
            self._run(todo)
        print_summary(jobs)
        if len(folders := {str(job.directory.path.parent) for job in jobs}) == 1:
            print(f"records: {folders.pop()}; as a table: wdlab.analysis.load", flush=True)

    def _run(self, todo: list[SweepJob]) -> None:
        """Launch the jobs, with a progress bar, and with stop files by which a signal or a failure ends the sweep.

        Raises:
            KeyboardInterrupt: if the sweep was interrupted; the number of runs in each state has been printed.
        """
        stop_files = stopping.StopFiles.new(todo[0].directory.path.parent)
        # The jobs find the stop files by an environment variable. Each launcher composes a job's config from the job's
        # overrides and the overrides recorded in the sweep's config. So an override that is added to the record reaches
        # the job's process with any launcher and on any machine; in that process Hydra sets the variable (`env_set`).
        # Changing `hydra.job.env_set` in the sweep's own config has no effect on jobs.
        variable = f"hydra.job.env_set.{stopping.SWEEP_VARIABLE}"
        prefix = interpolations.as_override_text(str(stop_files.prefix))
        self.config["hydra"]["overrides"]["hydra"].append(f"++{variable}={prefix}")
        try:
            progress = SweepProgress([(job.directory, job.config["train"]["steps"]) for job in todo])
            with stopping.forward_signals(stop_files), progress:
                self._launch_all(todo, stop_files)
            if stop_files.interrupted:
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            print_counts(todo)
            raise
        finally:
            stop_files.clear()

    def _launch_all(self, todo: list[SweepJob], stop_files: stopping.StopFiles) -> None:
        """Launch the jobs. If a worker process dies, which ends all jobs of a launch, launch the remaining jobs again.

        The jobs that were running when the worker died may have caused its death. They are launched last, each alone.
        """
        alone: list[SweepJob] = []
        while todo and not self._launch(todo, stop_files):
            left = [job for job in todo if not job.ended]
            died = [job for job in left if job.directory.status == "running"] or left
            alone += died
            todo = [job for job in left if job not in died]
        for job in alone:
            self._launch([job], stop_files)

    def _launch(self, jobs: list[SweepJob], stop_files: stopping.StopFiles) -> bool:
        """Give the jobs to the launcher and set their outcomes.

        Returns:
            False if a worker process died and the remaining jobs should be launched again, else True. Any other error
            of the launcher, except for a ConfigError, is printed and not raised.

        Raises:
            ConfigError: if the launcher refuses its settings or the jobs.
        """
        if isinstance(self.launcher, StackedLauncher):
            self.launcher.prepare(jobs, stop_files)
        try:
            returned = self.launcher.launch([job.overrides for job in jobs], initial_job_idx=0)
        except BrokenProcessPool:
            if any(job.config["fail_fast"] for job in jobs):
                stop_files.set_failed()
            return stop_files.interrupted
        except ConfigError:
            raise
        except Exception as error:
            print(f"the launcher failed: {explain(error) or repr(error)}", flush=True)
            return True
        for job, result in zip(jobs, returned, strict=True):
            job.outcome = result._return_value if result.status == JobStatus.FAILED else result.return_value
        return True

    def _job_overrides(self, arguments: list[str]) -> list[list[str]]:
        """Return the overrides of every job: each trial and point of the grid, with each entry of the file ``jobs``.

        Args:
            arguments: the overrides of the command line.

        Raises:
            ConfigError: for an interval or a number of trials that cannot be used, or if ``params`` or the file has
                another form.
        """
        listed = self._listed()
        return [[*point, *job] for point in self._grid(arguments) for job in listed]

    def _listed(self) -> list[list[str]]:
        """Return the override lists of the file ``jobs``, one empty list if there is no file.

        Raises:
            ConfigError: if the file has another form or contains an interval.
        """
        if self.jobs is None:
            return [[]]
        try:
            listed = json.loads(Path(self.jobs).read_text())
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"hydra.sweeper.jobs={self.jobs}: not a JSON list of override lists ({error})") from error
        if not (isinstance(listed, list) and all(isinstance(job, list) for job in listed)):
            raise ConfigError(f"hydra.sweeper.jobs={self.jobs}: not a JSON list of override lists")
        listed = [[str(override) for override in job] for job in listed]
        for override in itertools.chain.from_iterable(listed):
            if "interval(" in override:
                raise ConfigError(f"hydra.sweeper.jobs={self.jobs}: {override}: an interval cannot be in the file")
        return listed

    def _grid(self, arguments: list[str]) -> list[list[str]]:
        """Return the overrides of every trial and point of the grid; of several experiments, one after another.

        Hydra composes the sweep's own config without an override that is swept over. So ``hydra.sweeper.params`` of
        each of several experiments is taken from a config with this experiment.

        Args:
            arguments: the overrides of the command line.

        Raises:
            ConfigError: as :meth:`_job_overrides`.
        """
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        last = {override.get_key_element(): override for override in parser.parse_overrides(arguments)}
        chosen = last.get("+experiment")
        lines, params = [arguments], [self.params]
        if chosen is not None and chosen.is_discrete_sweep():
            experiments = [f"+experiment={name}" for name in chosen.sweep_string_iterator()]
            lines = [[*arguments, one] for one in experiments]
            params = [loader.load_sweep_config(self.config, [one]).hydra.sweeper.params or {} for one in experiments]
        grid = []
        for line, swept in zip(lines, params, strict=True):
            if not isinstance(swept, Mapping):
                raise ConfigError(f"hydra.sweeper.params={swept}: must be a group of keys")
            overrides = parser.parse_overrides([*(f"{key}={values}" for key, values in swept.items()), *line])
            grid += search.expand(overrides, self.trials, self.search_seed)
        return grid
