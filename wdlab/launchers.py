"""``hydra/launcher=stacked``: what can be trained side by side is, the rest of a sweep as by ``local``.

Chosen in ``configs/hydra/launcher/stacked.yaml``, registered by ``sweep``.
"""

import contextlib
import json
import logging
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from wdlab import interpolations, runs, stopping
from wdlab.errors import ConfigError, RunFailed, WdlabError, explain

log = logging.getLogger("wdlab")

VARYING = {"seed", "regularizer"}  # within a stack; of the optimizer its learning rate, and the decay it brings along
STRENGTHS = ("strength", "weight_decay")
DECAYING = ("wdlab.optimizers.PAdam", "wdlab.optimizers.SGDS")


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
        self._notice: stopping.Notice | None = None
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
            Job(overrides, config, number=number)
            for number, (overrides, config) in enumerate(zip(given, configs, strict=True), initial_job_idx)
        ]
        for stack in stacks(jobs, self._most):
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

    def prepare(self, configs: list[DictConfig], notice: stopping.Notice) -> None:
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

    def _tell_start(self, job: "Job") -> None:
        self._tell("on_job_start", job, task_function=self._local.task_function)

    def _tell(self, moment: str, job: "Job", **more: Any) -> None:
        """Tell Hydra's callbacks about a run in a stack, as Hydra does for one by itself."""
        callbacks = self._context.callbacks
        if any(getattr(type(one), moment, None) is not getattr(Callback, moment) for one in callbacks.callbacks):
            config = self._context.config_loader.load_sweep_config(self._config, job.overrides)
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = job.number
            with interpolations.as_hydra_config(config):
                getattr(callbacks, moment)(config=config, **more)


@dataclass
class Job:
    """A run of the sweep.

    ``outcome`` is what ``train`` would return for it, None as long as it has to be trained by itself, for a ``reason``.
    """

    overrides: list[str]
    config: DictConfig
    outcome: str | Exception | None = None
    reason: str | None = None
    number: int = 0

    @property
    def returned(self) -> JobReturn:
        status = JobStatus.FAILED if isinstance(self.outcome, Exception) else JobStatus.COMPLETED
        return JobReturn(overrides=self.overrides, cfg=self.config, status=status, _return_value=self.outcome)

    @property
    def begun_in_a_stack(self) -> bool:
        """Whether the run goes on from what a stack has made of it."""
        sessions = runs.RunDirectory.of(self.config).read("provenance.json").get("sessions", [])
        return bool(sessions) and bool(sessions[-1].get("stacked"))

    @property
    def kind(self) -> str:
        """What tells its method from others; equal for those that differ in strength only."""
        science = runs.scientific_config(self.config)
        settings = {"regularizer": science["regularizer"], "p": science["optimizer"].get("p")}
        return _text(settings, without=STRENGTHS)

    @property
    def stack(self) -> str:
        """What runs of one stack have in common."""
        science = {key: value for key, value in runs.scientific_config(self.config).items() if key not in VARYING}
        free = ("lr", "p", "weight_decay") if science["optimizer"]["_target_"] in DECAYING else ("lr",)
        science["optimizer"] = {key: value for key, value in science["optimizer"].items() if key not in free}
        return _text([science, dict(self.config["runtime"]), dict(self.config["paths"])])


def stacks(jobs: Sequence[Job], most: int) -> list[list[Job]]:
    """Groups of jobs, at most ``most``, that may be trained side by side; those of one method together.

    A job without others is no group, unless it has begun in a stack: its numbers are then to the last bit as if the
    others were still there.
    """
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.stack, []).append(job)
    result = []
    for group in found.values():
        group.sort(key=lambda job: job.kind)
        size = math.ceil(len(group) / math.ceil(len(group) / most))
        result += [group[first : first + size] for first in range(0, len(group), size)]
    for group in result:
        if len(group) == 1 and not group[0].begun_in_a_stack:
            group[0].reason = "no other run of this sweep has the same network, data and length"
    return [group for group in result if group[0].reason is None]


def train_stack(
    jobs: Sequence[Job], notice: stopping.Notice | None = None, on_start: Callable[[Job], None] = lambda job: None
) -> None:
    """Train what can be stacked of these jobs, and give each its ``outcome``, or the ``reason`` why it has none.

    ``on_start`` is called for each that has been found fit, before it is trained.

    Raises:
        KeyboardInterrupt: if SIGINT, SIGTERM or its sweep's notice ended it.
    """
    from wdlab import stacked, train

    if notice is not None and notice.given:
        for job in jobs:
            on_start(job)
            job.outcome = "skipped"
        return
    with contextlib.ExitStack() as exits, stopping.exit_requests(notice) as stop_requested:
        by_step: dict[int, list[tuple[Job, train.Session, stacked.Member]]] = {}
        beside = None
        for job in jobs:
            try:
                session = _begin(job, exits)
                if session is None:
                    continue
                trained = train.experiment(job.config, beside, len(jobs), session.threads_before)
                job.reason = stacked.why_not(job.config, trained)
            except Exception as error:  # by itself it will say so again, and be recorded
                job.reason = explain(error) or repr(error)
            if job.reason is None:
                beside = trained
                member = stacked.Member(trained, session.directory, None, session.start)
                on_start(job)
                by_step.setdefault(stacked.step_of(member), []).append((job, session, member))
        for parts in by_step.values():
            _train_together(parts, stop_requested)
            if stop_requested():
                raise KeyboardInterrupt
    if notice is not None and any(isinstance(job.outcome, Exception) and job.config["fail_fast"] for job in jobs):
        notice.tell_failed()


def _begin(job: Job, exits: contextlib.ExitStack) -> Any:
    """The session of a job's run, which nobody else has until ``exits``; None if it is over.

    Raises:
        Exception: where a run by itself would fail too, or another process has it.
    """
    from wdlab import train

    directory = runs.RunDirectory.of(job.config)
    directory.create()
    exits.enter_context(directory.lock())
    if directory.finished:
        return None
    directory.remove_leftovers()
    directory.write_config(job.config)
    return train.Session(job.config, directory)


def _train_together(parts: Sequence[tuple[Job, Any, Any]], stop_requested: Any) -> None:
    from wdlab import stacked, train

    config = parts[0][0].config
    try:
        for _, session, member in parts:
            session.open(member.experiment)
            member.recorder = session.records
        stacked.fit(
            [member for _, _, member in parts],
            [job.kind for job, _, _ in parts],
            config["train"],
            config["runtime"]["checkpoint_seconds"],
            stop_requested,
        )
        for _, session, member in parts:
            session.end(member.outcome)
            session.tell()
    except (Exception, SystemExit) as error:
        for job, session, _ in parts:
            job.outcome = _failed(session.directory, error)
    finally:
        for _, session, _ in parts:
            session.close()
    for job, session, _ in parts:
        if job.outcome is None:
            try:
                job.outcome = train.outcome_of(session.directory)
            except RunFailed as error:
                job.outcome = error
        if isinstance(job.outcome, Exception):
            log.error("error: %s", job.outcome)


def _failed(directory: runs.RunDirectory, error: BaseException) -> WdlabError | None:
    """Put an error of the whole stack into a run's status; None if the run had ended before."""
    from wdlab import train

    if directory.finished:
        return None
    try:
        with train.failure_recorded(directory):
            raise error
    except WdlabError as told:
        return told


def _text(value: Any, without: Sequence[str] = ()) -> str:
    """A config as text that is equal where the configs are; nulls do not count."""

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: plain(item) for key, item in node.items() if item is not None and key not in without}
        return [plain(item) for item in node] if isinstance(node, list | tuple) else node

    return json.dumps(plain(value), sort_keys=True, default=str)
