"""``-m``: a Hydra sweeper that checks every job before the first one trains, skips what is done, and sums up.

Chosen in ``configs/train.yaml``; works with any Hydra launcher. Besides the ordinary ``key=a,b`` grid it takes
``hydra.sweeper.jobs=FILE``, a JSON list of override lists, for settings that are paired rather than crossed.
"""

import contextlib
import copy
import json
import sys
import types
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from wdlab import interpolations, parallel, runs, stopping
from wdlab.errors import ConfigError, RunFailed, explain
from wdlab.launchers import StackedLauncher
from wdlab.progress import SweepProgress
from wdlab.slurm import SlurmLauncher


@dataclass
class Job:
    """One run of a sweep: what to override, where it is recorded, what became of it.

    ``outcome`` is what ``train`` returns for it: a word, or its error; None if it was not given to the launcher, or was
    lost with its worker.
    """

    overrides: list[str]
    config: DictConfig
    directory: runs.RunDirectory
    outcome: str | Exception | None = None
    status_before: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """``skipped``, ``stale`` (says that it runs, but its process is dead), or its status."""
        status = self.directory.status
        if status == "running":
            return "running" if self.directory.held else "stale"
        return "skipped" if self.outcome == "skipped" else status

    @property
    def ended(self) -> bool:
        """Whether it has come to an end, good or bad, since the sweep began."""
        status = self.directory.read("status.json")
        return status.get("status") not in (None, "running") and status != self.status_before

    @property
    def trouble(self) -> str | None:
        """Why the run cannot be left as it is; None if it is done, skipped, or another process has it."""
        state, status = self.state, self.directory.read("status.json")
        if state in ("done", "skipped", "running") or self.outcome == "locked":
            return None
        if isinstance(self.outcome, Exception) and state not in ("failed", "diverged"):
            return f"{state}, {explain(self.outcome) or repr(self.outcome)}"
        if state == "stale":
            return f"stale, its process died at step {self.directory.last_step}; the same command goes on from there"
        reason = status.get("error") or f"step {status.get('step', 0)}"
        return f"{state}, {reason.splitlines()[-1]}"


class Composer:
    """The configs of a sweep's jobs, without Hydra's own part.

    Those that differ only in values are composed once: what takes the time, finding and merging files, is the same for
    all of them.

    Args:
        loader, config: those of the sweep.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        self._loader, self._config = loader, config
        self._parser = OverridesParser.create(config_loader=loader)
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._groups: dict[str, bool] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """The config that the overrides make."""
        parsed = self._parser.parse_overrides(list(overrides))
        values = [o for o in parsed if o.type is OverrideType.CHANGE and not self._names_a_file(o)]
        rest = tuple(o.input_line for o in parsed if o not in values)
        if any(o.type is not OverrideType.CHANGE for o in parsed):  # whose place among the others matters
            values, rest = [], tuple(overrides)
        if rest not in self._composed:
            composed = self._loader.load_sweep_config(self._config, list(rest))
            with open_dict(composed):
                del composed["hydra"]
            self._composed[rest] = composed
        config = copy.deepcopy(self._composed[rest])
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        interpolations.read_environment(config)
        return config

    def job(self, overrides: list[str], number: int) -> "Job":
        """The job of a sweep that the overrides make, with values for what Hydra resolves in a job only."""
        config = self(overrides)
        pinned = interpolations.pin(config, self._loader, self._config, overrides, number)
        return Job([*overrides, *pinned], config, runs.RunDirectory.of(config))

    def _names_a_file(self, override: Override) -> bool:
        key = override.key_or_group
        if key not in self._groups:  # Hydra looks through all folders each time
            self._groups[key] = self._loader.get_group_options(key) != []
        return override.package is not None or key.startswith("hydra.") or self._groups[key]


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
        from wdlab.train import fault_of_code

        if parallel.group().size > 1:
            raise ConfigError("-m: torchrun shares one run between processes; start a sweep without it")
        composer = Composer(self.hydra_context.config_loader, self.config)
        by_run: dict[Path, Job] = {}  # two combinations may be the same run
        jobs = []
        for number, overrides in enumerate(self._job_overrides(arguments)):
            job = composer.job(overrides, number)
            jobs.append(by_run.setdefault(job.directory.path.absolute(), job))
        if not jobs:
            raise ConfigError("-m: this sweep is empty, no combination of values is left")
        todo = [job for job in by_run.values() if not job.directory.finished]
        here = not isinstance(self.launcher, SlurmLauncher)
        for job in todo:
            fault_of_code(job.config, here)  # its run will say it again, and be recorded
            job.status_before = job.directory.read("status.json")
        finished, same = len(by_run) - len(todo), len(jobs) - len(by_run)
        twice = f", {same} the same as others" if same else ""
        print(f"{len(jobs)} runs: {finished} finished before, {len(todo)} to do{twice}", flush=True)
        if todo:
            self._run(todo)
        _sum_up(jobs)

    def _run(self, todo: list[Job]) -> None:
        """Launch the jobs; KeyboardInterrupt, with a summary, if that was interrupted."""
        notice = stopping.Notice.new(todo[0].directory.path.parent)
        place = interpolations.typed(str(notice.place))
        self.config["hydra"]["overrides"]["hydra"].append(f"++hydra.job.env_set.{stopping.SWEEP}={place}")
        try:
            progress = SweepProgress([(job.directory, job.config["train"]["steps"]) for job in todo])
            with stopping.passed_on(notice), progress:
                self._launch_all(todo, notice)
            if notice.interrupted:
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            _print_counts(todo)
            raise
        finally:
            notice.clear()

    def _launch_all(self, todo: list[Job], notice: stopping.Notice) -> None:
        """Launch the jobs. A worker that dies takes its launch with it: those that ran come last then, each alone."""
        alone: list[Job] = []
        while todo and not self._launch(todo, notice):
            left = [job for job in todo if not job.ended]
            died = [job for job in left if job.directory.status == "running"] or left
            alone += died
            todo = [job for job in left if job not in died]
        for job in alone:
            self._launch([job], notice)

    def _launch(self, jobs: list[Job], notice: stopping.Notice) -> bool:
        """Whether all jobs came back; not if a worker died. Any other error of the launcher is told, and that is it."""
        if isinstance(self.launcher, StackedLauncher):
            self.launcher.prepare([job.config for job in jobs], notice)
        try:
            returned = self.launcher.launch([job.overrides for job in jobs], initial_job_idx=0)
        except BrokenProcessPool:
            if any(job.config["fail_fast"] for job in jobs):
                notice.tell_failed()
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


def left_to_the_jobs(override: str, groups: Collection[str]) -> str:
    """``key=value`` as a sweep over this one value, if the key belongs to one of the groups that jobs choose files of.

    Hydra first composes the sweep itself, without the choices that are swept over, and there the key may not exist.
    """
    key, _, value = override.partition("=")
    if not key.lstrip("+").startswith(tuple(f"{group.replace('/', '.')}." for group in groups if "hydra" not in group)):
        return override
    swept = f"{key}=choice({value})"
    with contextlib.suppress(HydraException, AttributeError):  # the latter under python -O: Hydra reads in its asserts
        one, other = OverridesParser.create().parse_overrides([override, swept])
        if not one.is_sweep_override() and [*other.sweep_string_iterator()] == [one.get_value_element_as_str()]:
            return swept
    return override  # Hydra says what is wrong with it


def register() -> None:
    """Make the sweeper and the launchers known to Hydra, which takes plugins from the namespace hydra_plugins only."""
    try:
        import hydra_plugins
    except ImportError:  # no other plugin is installed
        hydra_plugins = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        hydra_plugins.__path__ = []
    hydra_plugins.wdlab = sys.modules["hydra_plugins.wdlab"] = sys.modules[__name__]
    for plugin in (Sweep, StackedLauncher, SlurmLauncher):
        plugin.__module__ = "hydra_plugins.wdlab"
        Plugins.instance().register(plugin)


def _sum_up(jobs: list[Job]) -> None:
    """Print how many runs ended how, and every one that did not end well with its reason; raise if there is any."""
    _print_counts(jobs)
    bad = [f"{job.directory.name}: {reason}" for job in jobs if (reason := job.trouble) is not None]
    for line in dict.fromkeys(bad):
        print(f"  {line}", flush=True)
    if bad:
        raise RunFailed(f"{len(bad)} of {len(jobs)} runs did not end well; see above")


def _print_counts(jobs: list[Job]) -> None:
    counts = Counter(job.state for job in jobs)
    print("sweep: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())), flush=True)
