"""The records of a run: a local table, always, and W&B as a mirror that may fail. Called by the loop and ``train``."""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wdlab.errors import CheckpointError, ConfigError, writing

log = logging.getLogger("wdlab")

KEYS = ("mode", "project")
MODES = ("online", "offline", "disabled")
OLD_MODES = {"run": "online", "dryrun": "offline"}  # which WANDB_MODE may still have
SECONDS_TO_START, SECONDS_TO_FINISH = 10, 60  # that a W&B server out of reach can cost


class Recorder:
    """Appends one JSON line per log point and shows it to the mirror.

    Args:
        path: ``metrics.jsonl``.
        keep_bytes: how much of an existing file is valid; the rest, written after the checkpoint that is resumed from,
            is cut off and will be computed again.
        mirror: gets every row, those kept included.

    Raises:
        CheckpointError: if the file is shorter than ``keep_bytes``, so that records which a checkpoint vouches for are
            gone, or if one of them is damaged.
    """

    def __init__(self, path: Path, keep_bytes: int, mirror: "Mirror") -> None:
        found = path.stat().st_size if path.exists() else 0
        if found < keep_bytes:
            raise CheckpointError(f"{path}: holds {found} bytes, its checkpoint counts on {keep_bytes}; delete the run")
        self._file = path.open("a+b", buffering=0)  # a line is out or it is not; nothing is left to fail later
        self._file.truncate(keep_bytes)
        self._file.seek(0)
        self._path, self._mirror = path, mirror
        self.last: dict[str, Any] = {}
        for number, line in enumerate(self._file.read().splitlines(), start=1):
            self.last = _row(line)
            if not self.last:
                self._file.close()
                raise CheckpointError(f"{path}: line {number} is damaged; delete {path.parent} to start again")
            mirror.log(self.last)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row. Numbers that are not finite are written as null."""
        self.last = {key: _finite(value) for key, value in row.items()}
        line = memoryview(json.dumps(self.last).encode() + b"\n")
        before = self._file.tell()
        with writing(self._path, undo=lambda: self._file.truncate(before)):
            while line:
                line = line[self._file.write(line) :]
        self._mirror.log(self.last)

    def sync(self) -> int:
        """Put everything on the disk; returns the size of the file, for the checkpoint to vouch for."""
        with writing(self._path, undo=lambda: None):
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the table; the mirror is finished by whoever made it."""
        self._file.close()


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


def _row(line: bytes) -> dict[str, Any]:
    """A line of the table, {} if it is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) and "step" in row else {}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
