"""Groups of runs that can be trained as one batched program, and the training of such a group."""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import get_class
from omegaconf import DictConfig

from wdlab.build import build_experiment
from wdlab.engine import stopping
from wdlab.errors import RunFailed, WdlabError, explain
from wdlab.loop import fit
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import scientific_config
from wdlab.session import Session, failure_recorded, outcome_of
from wdlab.settings import read
from wdlab.stacked.eligibility import why_not_stacked
from wdlab.stacked.program import Stack, StackedRun

log = logging.getLogger("wdlab")

VARYING = ("seed", "regularizer")  # between runs of one stack; of the optimizer what its class declares
STRENGTHS = ("strength", "weight_decay")


@dataclass
class StackCandidate:
    """A run of a sweep that may be trained in a stack.

    Args:
        overrides, config: of the run.
        outcome: what ``session.run`` returns or raises for it; None as long as it has to be trained alone.
        reason: why it has to be trained alone.
        number: of the job in its sweep.
    """

    overrides: list[str]
    config: DictConfig
    outcome: str | Exception | None = None
    reason: str | None = None
    number: int = 0

    @property
    def returned(self) -> JobReturn:
        """The outcome in the form that a Hydra launcher returns."""
        status = JobStatus.FAILED if isinstance(self.outcome, Exception) else JobStatus.COMPLETED
        return JobReturn(overrides=self.overrides, cfg=self.config, status=status, _return_value=self.outcome)

    @property
    def begun_in_a_stack(self) -> bool:
        """True if the run resumes from a checkpoint that was made in a stack."""
        sessions = RunDirectory.of(self.config).read("provenance.json").get("sessions", [])
        return bool(sessions) and bool(sessions[-1].get("stacked"))

    @property
    def method_key(self) -> str:
        """Text that is equal for runs whose methods differ in strength only."""
        optimizer = self.config["optimizer"]
        own = {key: optimizer.get(key) for key in _free_settings(optimizer) if key != "lr"}
        return _as_text({"regularizer": scientific_config(self.config)["regularizer"], **own}, without=STRENGTHS)

    @property
    def stack_key(self) -> str:
        """Text that is equal for runs that can be in one stack."""
        science = {key: value for key, value in scientific_config(self.config).items() if key not in VARYING}
        free = _free_settings(science["optimizer"])
        science["optimizer"] = {key: value for key, value in science["optimizer"].items() if key not in free}
        return _as_text([science, dict(self.config["runtime"]), dict(self.config["paths"])])


def _free_settings(optimizer: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the settings of an optimizer in which runs of one stack may differ, as its class declares them."""
    try:
        kind = get_class(optimizer["_target_"])
    except Exception:  # reported where the run is built
        return ("lr",)
    return getattr(kind, "stacked_settings", ()) or ("lr",)


def group_into_stacks(jobs: Sequence[StackCandidate], most: int) -> list[list[StackCandidate]]:
    """Return groups of at most ``most`` jobs that may be trained side by side, with jobs of one method together.

    A job without others is in no group, unless it was begun in a stack: in a stack of one it gets the same numbers, to
    the last bit, as with the others.
    """
    found: dict[str, list[StackCandidate]] = {}
    for job in jobs:
        found.setdefault(job.stack_key, []).append(job)
    result = []
    for group in found.values():
        group.sort(key=lambda job: job.method_key)
        size = math.ceil(len(group) / math.ceil(len(group) / most))
        result += [group[first : first + size] for first in range(0, len(group), size)]
    for group in result:
        if len(group) == 1 and not group[0].begun_in_a_stack:
            group[0].reason = "no other run of this sweep has the same network, data and length"
    return [group for group in result if group[0].reason is None]


def train_stack(
    jobs: Sequence[StackCandidate],
    stop_files: stopping.StopFiles | None = None,
    on_start: Callable[[StackCandidate], None] = lambda job: None,
) -> None:
    """Train the jobs that can be stacked; set the ``outcome`` of each, or the ``reason`` why it has none.

    Args:
        jobs: with one ``stack_key``.
        stop_files: the stop files of the sweep.
        on_start: called for each job that is trained here, before it is trained.

    Raises:
        KeyboardInterrupt: if SIGINT, SIGTERM or the stop files ended it.
    """
    if stop_files is not None and stop_files.is_set:
        for job in jobs:
            on_start(job)
            job.outcome = "skipped"
        return
    with contextlib.ExitStack() as exits, stopping.exit_requests(stop_files) as stop_requested:
        by_step: dict[int, list[_Member]] = {}
        beside = None
        for job in jobs:
            try:
                session = _begin(job, exits)
                if session is None:
                    continue
                trained = build_experiment(job.config, beside, len(jobs), session.threads_before)
                job.reason = why_not_stacked(job.config, trained)
            except Exception as error:  # raised again where the run is trained alone, and recorded with it
                job.reason = explain(error) or repr(error)
            if job.reason is None:
                beside = trained
                run = StackedRun(trained, session.directory, None, job.method_key, session.start)
                on_start(job)
                by_step.setdefault(run.first, []).append(_Member(job, session, run))
        for members in by_step.values():
            _train_together(members, stop_requested)
            if stop_requested():
                raise KeyboardInterrupt
    if stop_files is not None and any(isinstance(job.outcome, Exception) and job.config["fail_fast"] for job in jobs):
        stop_files.set_failed()


class _Member(NamedTuple):
    """A job that is trained in a stack, with its session and its run."""

    job: StackCandidate
    session: Session
    run: StackedRun


def _begin(job: StackCandidate, exits: contextlib.ExitStack) -> Session | None:
    """Return the session of a job's run, locked until ``exits`` close; None if the run is finished.

    Raises:
        Exception: where the run would fail if it were trained alone too, or another process has it.
    """
    directory = RunDirectory.of(job.config)
    directory.create()
    exits.enter_context(directory.lock())
    if directory.finished:
        return None
    directory.remove_leftovers()
    directory.write_config(job.config)
    return Session(job.config, directory)


def _train_together(members: Sequence[_Member], stop_requested: Callable[[], bool]) -> None:
    settings = read(members[0].job.config)
    try:
        for _, session, run in members:
            session.open(run.experiment)
            run.recorder = session.records
        stack = Stack([member.run for member in members], settings.train)
        outcome = fit(stack, settings.train, settings.runtime.checkpoint_seconds, stop_requested)
        for _, session, run in members:
            session.end(run.outcome or outcome)
            session.log_outcome()
    except (Exception, SystemExit) as error:
        for member in members:
            member.job.outcome = _failed(member.session.directory, error)
    finally:
        for member in members:
            member.session.close()
    for job, session, _ in members:
        if job.outcome is None:
            try:
                job.outcome = outcome_of(session.directory)
            except RunFailed as error:
                job.outcome = error
        if isinstance(job.outcome, Exception):
            log.error("error: %s", job.outcome)


def _failed(directory: RunDirectory, error: BaseException) -> WdlabError | None:
    """Record an error of the whole stack in a run's status, and return it; None if the run had ended before."""
    if directory.finished:
        return None
    try:
        with failure_recorded(directory):
            raise error
    except WdlabError as told:
        return told


def _as_text(value: Any, without: Sequence[str] = ()) -> str:
    """Return a config as text, equal for equal configs; nulls do not count."""

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: plain(item) for key, item in node.items() if item is not None and key not in without}
        return [plain(item) for item in node] if isinstance(node, list | tuple) else node

    return json.dumps(plain(value), sort_keys=True, default=str)
