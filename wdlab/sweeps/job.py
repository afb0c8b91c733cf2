"""One run of a sweep: its overrides, its directory, and its outcome."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from wdlab.errors import explain
from wdlab.records.directory import RunDirectory


@dataclass
class SweepJob:
    """One run of a sweep.

    Attributes:
        overrides: those of the run, from which the launcher composes its config again.
        config: the composed config.
        directory: where the run is recorded.
        outcome: the word that ``train`` returns for the run, or the error that it raises; None if the run was not given
            to the launcher, or its worker died.
        status_before: the content of ``status.json`` at the start of the sweep.
    """

    overrides: list[str]
    config: DictConfig
    directory: RunDirectory
    outcome: str | Exception | None = None
    status_before: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """``skipped``, ``stale`` (recorded as running, but its process is dead), or the recorded status."""
        status = self.directory.status
        if status == "running":
            return "running" if self.directory.held else "stale"
        return "skipped" if self.outcome == "skipped" else status

    @property
    def ended(self) -> bool:
        """True if the run has ended since the sweep began, whether it is done or failed."""
        status = self.directory.read("status.json")
        return status.get("status") not in (None, "running") and status != self.status_before

    @property
    def problem(self) -> str | None:
        """Why the run is not done, in a line; None if it is done or skipped, or another process trains it."""
        state, status = self.state, self.directory.read("status.json")
        if state in ("done", "skipped", "running") or self.outcome == "locked":
            return None
        if isinstance(self.outcome, Exception) and state not in ("failed", "diverged"):
            return f"{state}, {explain(self.outcome) or repr(self.outcome)}"
        if state == "stale":
            return f"stale, its process died at step {self.directory.last_step}; the same command resumes it"
        reason = status.get("error") or f"step {status.get('step', 0)}"
        return f"{state}, {reason.splitlines()[-1]}"
