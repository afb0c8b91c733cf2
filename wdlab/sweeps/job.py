"""One run of a sweep: its overrides, its directory, and its outcome."""

from dataclasses import dataclass, field
from typing import Any

from wdlab.errors import explain
from wdlab.records.directory import RunDirectory


@dataclass
class SweepJob:
    """One run of a sweep.

    Attributes:
        overrides: the run's overrides, from which the launcher composes the config again.
        config: the run's config as plain values with interpolations resolved, which take little memory.
        directory: the run's directory.
        outcome: ``done``, ``locked``, ``skipped`` or ``interrupted``, as ``train`` returns it, or the error that ended
            the run; None if the launcher has returned nothing for this run.
        status_before: the content of ``status.json`` at the start of the sweep; {} if there was none.
    """

    overrides: list[str]
    config: dict[str, Any]
    directory: RunDirectory
    outcome: str | Exception | None = None
    status_before: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """The state of the run at present.

        It is ``stale`` if the recorded status is ``running`` and no process holds the run's lock, ``skipped`` if the
        sweep stopped before the run began, else the recorded status (``RunDirectory.status``).
        """
        status = self.directory.status
        if status == "running":
            return "running" if self.directory.is_locked else "stale"
        return "skipped" if self.outcome == "skipped" else status

    @property
    def ended(self) -> bool:
        """True if the run has ended since the sweep began, whether it is done, diverged, failed or interrupted.

        Then ``status.json`` differs from ``status_before``, and its status is not ``running``.
        """
        status = self.directory.read("status.json")
        return status.get("status") not in (None, "running") and status != self.status_before

    @property
    def problem(self) -> str | None:
        """The reason why the run is not done, in one line; None if it is done, or skipped, or a process trains it."""
        state, status = self.state, self.directory.read("status.json")
        if state in ("done", "skipped", "running") or self.outcome == "locked":
            return None
        if isinstance(self.outcome, Exception) and state not in ("failed", "diverged"):
            return f"{state}, {explain(self.outcome) or repr(self.outcome)}"
        if state == "stale":
            return f"stale, its process died at step {self.directory.last_step}; the same command resumes it"
        reason = status.get("error") or f"step {status.get('step', 0)}"
        return f"{state}, {reason.splitlines()[-1]}"
