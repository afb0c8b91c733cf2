"""Groups of runs that can be trained as one batched program, and the training of such a group."""

import contextlib
import functools
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import get_class

from wdlab.build import build_experiment
from wdlab.engine import stopping
from wdlab.engine.progress import format_duration
from wdlab.errors import RunFailed, WdlabError, explain
from wdlab.loop import fit
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import scientific_config
from wdlab.session import Session, failure_recorded, status_unless_diverged
from wdlab.settings import read
from wdlab.stacked.eligibility import why_not_stacked
from wdlab.stacked.program import Stack, StackedRun

log = logging.getLogger("wdlab")

# Keys in which runs of one stack may differ, in addition to the settings that ``_free_settings`` returns.
VARYING = ("seed", "regularizer")
STRENGTHS = ("strength", "weight_decay")  # keys that set how strong a method is


@dataclass
class StackCandidate:
    """A run of a sweep that may be trained in a stack.

    Args:
        overrides: the run's overrides.
        config: the run's config.
        directory: the run's directory.
        outcome: the status of the run after its training in a stack, ``skipped`` if the sweep stopped before, or the
            error that ended the run; None as long as the run was not trained in a stack.
        reason: why the run has to be trained alone, in a line; None if no reason is known.
        number: the run's number in its sweep.
    """

    overrides: list[str]
    config: Mapping[str, Any]
    directory: RunDirectory
    outcome: str | Exception | None = None
    reason: str | None = None
    number: int = 0

    @property
    def returned(self) -> JobReturn:
        """The outcome as the ``JobReturn`` that a Hydra launcher returns, without the config."""
        status = JobStatus.FAILED if isinstance(self.outcome, Exception) else JobStatus.COMPLETED
        return JobReturn(overrides=self.overrides, status=status, _return_value=self.outcome)

    @property
    def begun_in_a_stack(self) -> bool:
        """True if the run's last session, according to ``provenance.json``, trained it in a stack."""
        sessions = self.directory.read("provenance.json").get("sessions", [])
        return bool(sessions) and bool(sessions[-1].get("stacked"))

    @functools.cached_property
    def method_key(self) -> str:
        """Text that is equal for two runs if their weight-decay methods are the same except for their strengths."""
        optimizer = self.config["optimizer"]
        own = {key: optimizer.get(key) for key in _free_settings(optimizer.get("_target_")) if key != "lr"}
        return _as_text({"regularizer": self.config["regularizer"], **own}, without=STRENGTHS)

    @functools.cached_property
    def stack_key(self) -> str:
        """Text that is equal for two runs if they differ only in settings in which runs of one stack may differ."""
        science = {key: value for key, value in scientific_config(self.config).items() if key not in VARYING}
        free = _free_settings(science["optimizer"].get("_target_"))
        science["optimizer"] = {key: value for key, value in science["optimizer"].items() if key not in free}
        return _as_text([science, dict(self.config["runtime"]), dict(self.config["paths"])])


@functools.lru_cache
def _free_settings(target: str | None) -> tuple[str, ...]:
    """Return the keys of the settings of the optimizer ``target`` in which runs of one stack may differ.

    They are the ``stacked_settings`` of the optimizer's class; ``("lr",)`` if it has none or cannot be imported.
    """
    try:
        kind = get_class(target)
    except Exception:  # raised again where the run is built, and reported there
        return ("lr",)
    return getattr(kind, "stacked_settings", ()) or ("lr",)


def group_into_stacks(jobs: Sequence[StackCandidate], most: int) -> list[list[StackCandidate]]:
    """Return groups of at most ``most`` jobs that may be trained side by side.

    Jobs of one method are neighbours, and among them jobs with one learning rate, which share a kernel of the
    optimizer's step.

    A job that would be the only job of its group is left out and gets a ``reason``, unless it was begun in a stack: a
    stack of one job computes the same numbers, to the last bit, as a stack of several.
    """
    by_key: dict[str, list[StackCandidate]] = {}
    for job in jobs:
        by_key.setdefault(job.stack_key, []).append(job)
    result = []
    for group in by_key.values():
        lrs = [job.config["optimizer"].get("lr") for job in group]
        group.sort(key=lambda job: (job.method_key, lrs.index(job.config["optimizer"].get("lr"))))
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
    """Train jobs as a stack, and set the ``outcome`` of each.

    A job that cannot be stacked gets a ``reason`` instead. A job whose run was finished before gets neither.

    Args:
        jobs: jobs with the same ``stack_key``.
        stop_files: the stop files of the sweep; None outside of sweeps.
        on_start: called with each job that is trained or skipped here, before it is trained.

    Raises:
        KeyboardInterrupt: if SIGINT, SIGTERM or the stop files ended the training.
    """
    if stop_files is not None and stop_files.is_set:
        for job in jobs:
            on_start(job)
            job.outcome = "skipped"
        return
    with contextlib.ExitStack() as exits, stopping.watch_stop_requests(stop_files) as stop_requested:
        by_step: dict[int, list[_Member]] = {}
        neighbour = None
        for job in jobs:
            try:
                session = _begin(job, exits)
                if session is None:
                    continue
                trained = build_experiment(job.config, neighbour, len(jobs), session.threads_before)
                job.reason = why_not_stacked(job.config, trained)
            except Exception as error:  # raised again, and recorded, when the run is trained alone
                job.reason = explain(error) or repr(error)
            if job.reason is None:
                neighbour = trained
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
    """A job that is trained in a stack, with its session and its part of the stack."""

    job: StackCandidate
    session: Session
    run: StackedRun


def _begin(job: StackCandidate, exits: contextlib.ExitStack) -> Session | None:
    """Begin the session of a job's run and return it; None if the run is finished.

    Args:
        job: the job.
        exits: the exit stack that releases the run's lock when it is closed.

    Raises:
        Exception: an error with which the run would also end if it were trained alone; or ``filelock.Timeout`` if
            another process holds the run's lock.
    """
    job.directory.create()
    exits.enter_context(job.directory.lock())
    if job.directory.finished:
        return None
    job.directory.remove_leftovers()
    job.directory.write_config(job.config)
    return Session(job.config, job.directory)


def _train_together(members: Sequence[_Member], stop_requested: Callable[[], bool]) -> None:
    """Train the members in one stack, record the end of each run, and set the ``outcome`` of each job."""
    settings, began = read(members[0].job.config), time.monotonic()
    try:
        for _, session, run in members:
            session.open(run.experiment)
            run.recorder = session.records
        step = members[0].run.first
        log.info("%d runs in one stack: %s", len(members), f"resumed at step {step}" if step else "started")
        stack = Stack([member.run for member in members], settings.train)
        outcome = fit(stack, settings.train, settings.runtime.checkpoint_seconds, stop_requested)
        for _, session, run in members:
            session.end(run.outcome or outcome)
            session.log_outcome(logging.DEBUG)
        counts = Counter(run.outcome or outcome for _, _, run in members)
        ended = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
        log.info("%d runs in one stack: %s after %s", len(members), ended, format_duration(time.monotonic() - began))
    except (Exception, SystemExit) as error:
        for member in members:
            member.job.outcome = _failed(member.session.directory, error)
    finally:
        for member in members:
            member.session.close()
    for job, session, _ in members:
        if job.outcome is None:
            try:
                job.outcome = status_unless_diverged(session.directory)
            except RunFailed as error:
                job.outcome = error
        if isinstance(job.outcome, Exception):
            log.error("error: %s", job.outcome)


def _failed(directory: RunDirectory, error: BaseException) -> WdlabError | None:
    """Record an error that ended a stack in the ``status.json`` of one of its runs.

    Returns:
        The error, as a RunFailed if it is not a WdlabError; None if the run was finished before the error occurred.
    """
    if directory.finished:
        return None
    try:
        with failure_recorded(directory):
            raise error
    except WdlabError as recorded:
        return recorded


def _as_text(value: Any, without: Sequence[str] = ()) -> str:
    """Return a nested value as JSON text with sorted keys, at every level without nulls and the keys ``without``."""

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: plain(item) for key, item in node.items() if item is not None and key not in without}
        return [plain(item) for item in node] if isinstance(node, list | tuple) else node

    return json.dumps(plain(value), sort_keys=True, default=str)
