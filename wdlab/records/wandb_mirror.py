"""A mirror of the local records in Weights & Biases. It may fail at any time; the run continues without it."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wdlab.errors import ConfigError

log = logging.getLogger("wdlab")

KEYS = ("mode", "project")
MODES = ("online", "offline", "disabled")
OLD_MODES = {"run": "online", "dryrun": "offline"}  # which WANDB_MODE may still have
SECONDS_TO_START, SECONDS_TO_FINISH = 10, 60  # that a W&B server out of reach can cost


class Mirror:
    """Mirrors nothing: ``logger=disabled``, and what every other mirror falls back to."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Show a row."""

    def finish(self, exit_code: int) -> None:
        """Say that the run is over."""


class WandbMirror(Mirror):
    """Shows the table in Weights & Biases. Any failure is told once, ends the mirroring, and nothing else."""

    def __init__(self, mode: str, project: str, folder: Path, name: str, config: dict[str, Any]) -> None:
        self._run: Any = None
        if mode == "offline":  # every session mirrors the whole table again, under the same id
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
            told = " ".join(f"{type(error).__name__}: {error}".split())
            log.warning("W&B stopped (%s); the run and its local records go on", told)


def make_mirror(config: Mapping[str, Any], folder: Path, name: str, run_config: dict[str, Any]) -> Mirror:
    """The mirror that ``configs/logger`` asks for. ``disabled`` never imports wandb."""
    check(config)
    mode = _mode(config)
    return Mirror() if mode == "disabled" else WandbMirror(mode, config["project"], folder, name, run_config)


def check(config: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a logger mode that does not exist, given by the config or by the environment."""
    if config["mode"] not in ("auto", *MODES):
        raise ConfigError(f"logger.mode={config['mode']}: must be one of auto, {', '.join(MODES)}")
    if _mode(config) not in MODES:
        raise ConfigError(f"WANDB_MODE={_mode(config)}: must be one of {', '.join(MODES)}, or give logger=")


def _mode(config: Mapping[str, Any]) -> str:
    """The mode in force: what W&B's own variables in the environment say counts for ``auto`` alone."""
    if config["mode"] != "auto":
        return config["mode"]
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE") or "offline"
    return OLD_MODES.get(mode, mode)
