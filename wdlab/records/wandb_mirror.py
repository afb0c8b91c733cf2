"""A mirror of the local records in Weights & Biases. It may fail at any time; the run continues without it."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wdlab.errors import ConfigError
from wdlab.settings import LOGGER_MODES, LoggerSettings

log = logging.getLogger("wdlab")

OLD_MODES = {"run": "online", "dryrun": "offline"}  # older names, which W&B still takes in WANDB_MODE
SECONDS_TO_START, SECONDS_TO_FINISH = 10, 60  # the most that a W&B server out of reach can cost


class Mirror:
    """The mirror that shows nothing: ``logger=disabled``."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Show a row."""

    def finish(self, exit_code: int) -> None:
        """Report that the run is over."""


class WandbMirror(Mirror):
    """The table in Weights & Biases. A failure is logged once and ends the mirroring, but not the run."""

    def __init__(self, mode: str, project: str, folder: Path, name: str, config: dict[str, Any]) -> None:
        self._run: Any = None
        if mode == "offline":  # as every session writes the whole table again, under the same id
            shutil.rmtree(folder / "wandb", ignore_errors=True)
        self._try(lambda: self._start(mode, project, folder, name, config))

    def _start(self, mode: str, project: str, folder: Path, name: str, config: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            x_disable_stats=True,
            x_disable_machine_info=True,
            save_code=False,
            init_timeout=SECONDS_TO_START,
            finish_timeout=SECONDS_TO_FINISH,
            finish_timeout_raises=True,
        )
        self._run = wandb.init(
            mode=mode,
            project=project,
            dir=str(folder),
            id=name,
            name=name,
            config=config,
            resume="allow" if mode == "online" else None,
            reinit="create_new",  # several may be open at once, see stacked.py
            settings=settings,
        )

    def log(self, row: Mapping[str, Any]) -> None:
        if self._run is not None and row["step"] >= self._run.step:
            self._try(lambda: self._run.log(dict(row), step=row["step"]))

    def finish(self, exit_code: int) -> None:
        if self._run is not None:
            self._try(lambda: self._run.finish(exit_code=exit_code))

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            self._run = None
            line = " ".join(f"{type(error).__name__}: {error}".split())
            log.warning("W&B stopped (%s); the run and its local records go on", line)


def make_mirror(settings: LoggerSettings, folder: Path, name: str, run_config: dict[str, Any]) -> Mirror:
    """Return the mirror that ``configs/logger`` describes. ``disabled`` never imports wandb."""
    check(settings)
    mode = _mode(settings)
    return Mirror() if mode == "disabled" else WandbMirror(mode, settings.project, folder, name, run_config)


def check(settings: LoggerSettings) -> None:
    """Raise a ConfigError for a mode in the environment that does not exist."""
    if _mode(settings) not in LOGGER_MODES:
        raise ConfigError(f"WANDB_MODE={_mode(settings)}: must be one of {', '.join(LOGGER_MODES)}, or give logger=")


def _mode(settings: LoggerSettings) -> str:
    """Return the mode in force: W&B's own variables in the environment count for ``auto`` alone."""
    if settings.mode != "auto":
        return settings.mode
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE") or "offline"
    return OLD_MODES.get(mode, mode)
