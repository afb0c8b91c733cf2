"""Groups of runs that can be trained as one batched program, and the training of such a group."""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from wdlab.build import build_experiment
from wdlab.engine import stopping
from wdlab.errors import RunFailed, WdlabError, explain
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import scientific_config
from wdlab.session import Session, failure_recorded, outcome_of
from wdlab.stacked.eligibility import why_not_stacked
from wdlab.stacked.program import StackedRun, fit, step_of

log = logging.getLogger("wdlab")

VARYING = {"seed", "regularizer"}  # within a stack; of the optimizer its learning rate, and the decay it brings along
STRENGTHS = ("strength", "weight_decay")
DECAYING = ("wdlab.optimizers.PAdam", "wdlab.optimizers.SGDS")


@dataclass
class StackCandidate:
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
        sessions = RunDirectory.of(self.config).read("provenance.json").get("sessions", [])
        return bool(sessions) and bool(sessions[-1].get("stacked"))

    @property
    def kind(self) -> str:
        """What tells its method from others; equal for those that differ in strength only."""
        science = scientific_config(self.config)
        settings = {"regularizer": science["regularizer"], "p": science["optimizer"].get("p")}
        return _text(settings, without=STRENGTHS)

    @property
    def stack(self) -> str:
        """What runs of one stack have in common."""
        science = {key: value for key, value in scientific_config(self.config).items() if key not in VARYING}
        free = ("lr", "p", "weight_decay") if science["optimizer"]["_target_"] in DECAYING else ("lr",)
        science["optimizer"] = {key: value for key, value in science["optimizer"].items() if key not in free}
        return _text([science, dict(self.config["runtime"]), dict(self.config["paths"])])


def group_into_stacks(jobs: Sequence[StackCandidate], most: int) -> list[list[StackCandidate]]:
    """Groups of jobs, at most ``most``, that may be trained side by side; those of one method together.

    A job without others is no group, unless it has begun in a stack: its numbers are then to the last bit as if the
    others were still there.
    """
    found: dict[str, list[StackCandidate]] = {}
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
    jobs: Sequence[StackCandidate],
    notice: stopping.StopFiles | None = None,
    on_start: Callable[[StackCandidate], None] = lambda job: None,
) -> None:
    """Train what can be stacked of these jobs, and give each its ``outcome``, or the ``reason`` why it has none.

    ``on_start`` is called for each that has been found fit, before it is trained.

    Raises:
        KeyboardInterrupt: if SIGINT, SIGTERM or its sweep's notice ended it.
    """
    if notice is not None and notice.is_set:
        for job in jobs:
            on_start(job)
            job.outcome = "skipped"
        return
    with contextlib.ExitStack() as exits, stopping.exit_requests(notice) as stop_requested:
        by_step: dict[int, list[tuple[StackCandidate, Session, StackedRun]]] = {}
        beside = None
        for job in jobs:
            try:
                session = _begin(job, exits)
                if session is None:
                    continue
                trained = build_experiment(job.config, beside, len(jobs), session.threads_before)
                job.reason = why_not_stacked(job.config, trained)
            except Exception as error:  # by itself it will say so again, and be recorded
                job.reason = explain(error) or repr(error)
            if job.reason is None:
                beside = trained
                member = StackedRun(trained, session.directory, None, session.start)
                on_start(job)
                by_step.setdefault(step_of(member), []).append((job, session, member))
        for parts in by_step.values():
            _train_together(parts, stop_requested)
            if stop_requested():
                raise KeyboardInterrupt
    if notice is not None and any(isinstance(job.outcome, Exception) and job.config["fail_fast"] for job in jobs):
        notice.set_failed()


def _begin(job: StackCandidate, exits: contextlib.ExitStack) -> Any:
    """The session of a job's run, which nobody else has until ``exits``; None if it is over.

    Raises:
        Exception: where a run by itself would fail too, or another process has it.
    """
    directory = RunDirectory.of(job.config)
    directory.create()
    exits.enter_context(directory.lock())
    if directory.finished:
        return None
    directory.remove_leftovers()
    directory.write_config(job.config)
    return Session(job.config, directory)


def _train_together(parts: Sequence[tuple[StackCandidate, Any, Any]], stop_requested: Any) -> None:
    config = parts[0][0].config
    try:
        for _, session, member in parts:
            session.open(member.experiment)
            member.recorder = session.records
        fit(
            [member for _, _, member in parts],
            [job.kind for job, _, _ in parts],
            config["train"],
            config["runtime"]["checkpoint_seconds"],
            stop_requested,
        )
        for _, session, member in parts:
            session.end(member.outcome)
            session.log_outcome()
    except (Exception, SystemExit) as error:
        for job, session, _ in parts:
            job.outcome = _failed(session.directory, error)
    finally:
        for _, session, _ in parts:
            session.close()
    for job, session, _ in parts:
        if job.outcome is None:
            try:
                job.outcome = outcome_of(session.directory)
            except RunFailed as error:
                job.outcome = error
        if isinstance(job.outcome, Exception):
            log.error("error: %s", job.outcome)


def _failed(directory: RunDirectory, error: BaseException) -> WdlabError | None:
    """Put an error of the whole stack into a run's status; None if the run had ended before."""

    if directory.finished:
        return None
    try:
        with failure_recorded(directory):
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
