"""``-m``: a Hydra sweeper that checks every job before the first one trains, skips what is done, and sums up.

Chosen in ``configs/train.yaml``; works with any Hydra launcher. Besides the ordinary ``key=a,b`` grid it takes
``hydra.sweeper.jobs=FILE``, a JSON list of override lists, for settings that are paired rather than crossed.
"""

import json
import sys
import types
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from wdlab import parallel, runs
from wdlab.errors import ConfigError, RunFailed, explain
from wdlab.progress import SweepProgress
from wdlab.slurm import SlurmLauncher


class Sweep(Sweeper):
    """See the module. ``params`` maps keys to sweep strings, as in Hydra's basic sweeper."""

    def __init__(self, params: dict[str, str] | None = None, jobs: str | None = None) -> None:
        self.params = params or {}
        self.jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs that are not finished yet.

        Raises:
            WdlabError: before any training, if a job's config cannot be used.
            RunFailed: at the end, naming the runs that failed or diverged.
        """
        from wdlab.train import check

        if parallel.group().size > 1:
            raise ConfigError("-m: torchrun shares one run between processes; start a sweep without it")
        todo, running, directories = [], [], []
        for overrides in self._job_overrides(arguments):
            config: DictConfig = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
            directory = runs.RunDirectory.of(config)
            directories.append(directory)
            if not directory.finished:
                check(config, here=not isinstance(self.launcher, SlurmLauncher))
                todo.append(overrides)
                running.append((directory, config["train"]["steps"]))
        print(f"{len(directories)} runs: {len(directories) - len(todo)} finished before, {len(todo)} to do", flush=True)
        if todo:
            with SweepProgress(running):
                jobs = self._launch(todo)
            outcomes = {directory.name: job for (directory, _), job in zip(running, jobs, strict=False)}
        else:
            outcomes = {}
        _sum_up(directories, outcomes)

    def _launch(self, todo: list[list[str]]) -> Sequence[JobReturn]:
        """What the launcher returns; nothing if it fails, since the runs have left their records nevertheless."""
        try:
            return self.launcher.launch(todo, initial_job_idx=0)
        except ConfigError:
            raise
        except Exception as error:
            print(f"the launcher failed: {explain(error) or repr(error)}", flush=True)
            return []

    def _job_overrides(self, arguments: list[str]) -> list[list[str]]:
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # not before Hydra has scanned its plugins

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        swept = [f"{key}={values}" for key, values in self.params.items()]
        (grid,) = BasicSweeper.split_arguments(parser.parse_overrides([*swept, *arguments]), None)
        if self.jobs is None:
            return grid
        try:
            listed = json.loads(Path(self.jobs).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"hydra.sweeper.jobs={self.jobs}: not a JSON list of override lists ({error})") from error
        if not (isinstance(listed, list) and all(isinstance(job, list) for job in listed)):
            raise ConfigError(f"hydra.sweeper.jobs={self.jobs}: not a JSON list of override lists")
        listed = [[str(override) for override in job] for job in listed]
        return [[*point, *job] for point in grid for job in listed]


def register() -> None:
    """Make the sweeper and the launcher known to Hydra, which takes plugins from the namespace hydra_plugins only."""
    try:
        import hydra_plugins
    except ImportError:  # no other plugin is installed
        hydra_plugins = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        hydra_plugins.__path__ = []
    hydra_plugins.wdlab = sys.modules["hydra_plugins.wdlab"] = sys.modules[__name__]
    for plugin in (Sweep, SlurmLauncher):
        plugin.__module__ = "hydra_plugins.wdlab"
        Plugins.instance().register(plugin)


def _sum_up(directories: list[runs.RunDirectory], outcomes: dict[str, JobReturn]) -> None:
    """Print how many runs ended how, and every one that did not end well with its reason; raise if there is any."""
    counts = Counter(directory.status for directory in directories)
    print("sweep: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())), flush=True)
    reasons = {directory.name: _trouble(directory, outcomes.get(directory.name)) for directory in directories}
    bad = {name: reason for name, reason in reasons.items() if reason is not None}
    for name, reason in bad.items():
        print(f"  {name}: {reason}", flush=True)
    if bad:
        raise RunFailed(f"{len(bad)} of {len(directories)} runs did not end well; see above")


def _trouble(directory: runs.RunDirectory, job: JobReturn | None) -> str | None:
    """Why a run of a sweep cannot be left as it is; None if it is done or another process has it."""
    status = directory.read("status.json")
    if directory.status == "done":
        return None
    if job is not None and job.status == JobStatus.FAILED:  # outside of what the run itself records
        error = job._return_value
        return f"not run, {explain(error) or repr(error)}"
    if job is not None and job.return_value == "locked":
        return None
    reason = status.get("error") or f"step {status.get('step', 0)}"
    return f"{directory.status}, {reason.splitlines()[-1]}"
