"""One run of a sweep: its overrides, its directory, and its outcome."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from wdlab.errors import explain
from wdlab.records.directory import RunDirectory


@dataclass
class SweepJob:
    """One run of a sweep: what to override, where it is recorded, what became of it.

    ``outcome`` is what ``train`` returns for it: a word, or its error; None if it was not given to the launcher, or was
    lost with its worker.
    """

    overrides: list[str]
    config: DictConfig
    directory: RunDirectory
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
