"""A mirror of a run's log lines in Weights & Biases (W&B). If the mirror fails, the run continues without it."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wdlab.errors import ConfigError
from wdlab.settings import LOGGER_MODES, LoggerSettings

log = logging.getLogger("wdlab")

OLD_MODES = {"run": "online", "dryrun": "offline"}  # older names of modes, which W&B still accepts in WANDB_MODE
SECONDS_TO_START, SECONDS_TO_FINISH = 10, 60  # how long a run waits for a W&B server that does not respond


class Mirror:
    """The mirror of the mode ``disabled``, which does nothing, and the base class of other mirrors."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Hook for a log line. Does nothing by default.

        Args:
            row: the values of the line by column; ``step`` is one of the columns.
        """

    def finish(self, exit_code: int) -> None:
        """Hook for the end of the session. Does nothing by default.

        Args:
            exit_code: 0 if the run is done or diverged, else 1.
        """


class WandbMirror(Mirror):
    """The mirror that writes log lines to W&B. After its first error it logs one warning and does nothing more.

    Args:
        mode: W&B's mode, ``online`` or ``offline``.
        project: the name of the project in W&B.
        folder: the run directory, in which W&B keeps its files.
        name: the run's name, also used as its id in W&B.
        config: the settings that W&B shows for the run.
    """

    def __init__(self, mode: str, project: str, folder: Path, name: str, config: dict[str, Any]) -> None:
        self._run: Any = None
        if mode == "offline":  # each session writes all log lines again under the same id
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
            reinit="create_new",  # the runs of a stack are open at the same time
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
    """Return the mirror of a run. In the mode ``disabled`` wandb is not imported.

    Args:
        settings: the ``logger`` part of the config.
        folder: the run directory.
        name: the run's name.
        run_config: the settings that W&B shows for the run.

    Raises:
        ConfigError: as :func:`check_mode`.
    """
    check_mode(settings)
    mode = _mode(settings)
    return Mirror() if mode == "disabled" else WandbMirror(mode, settings.project, folder, name, run_config)


def check_mode(settings: LoggerSettings) -> None:
    """Check the W&B mode that the environment variable ``WANDB_MODE`` sets if ``logger=auto``.

    Raises:
        ConfigError: if there is no such mode.
    """
    if _mode(settings) not in LOGGER_MODES:
        raise ConfigError(f"WANDB_MODE={_mode(settings)}: must be one of {', '.join(LOGGER_MODES)}, or give logger=")


def _mode(settings: LoggerSettings) -> str:
    """Return the mode to use: ``settings.mode``, or for ``auto`` the mode from W&B's environment variables."""
    if settings.mode != "auto":
        return settings.mode
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE") or "offline"
    return OLD_MODES.get(mode, mode)
