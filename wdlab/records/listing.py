"""The state, the progress and the settings of all runs of a folder, read from their directories. Imports no torch.

Called by ``wdlab.runs``, which prints them.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wdlab.errors import ConfigError
from wdlab.interpolations import leaves
from wdlab.records.directory import FINISHED, RunDirectory
from wdlab.records.identity import NAMED_KEYS, SCIENTIFIC_KEYS

# in the order of the list
STATES = ("done", "new", "running", "interrupted", "diverged", "failed", "stale", "unreadable")
# statuses that may be in a ``status.json``
_WRITTEN = ("running", "interrupted", "failed", *FINISHED)
# parts of a config with settings to list, in their order
_PARTS = (*SCIENTIFIC_KEYS, "runtime")


@dataclass(frozen=True)
class ListedRun:
    """A run in the list. The docstring of ``wdlab.runs`` explains the fields.

    Names that are in the name of the run, and settings that are null, are not among the ``settings``.
    """

    run: str
    path: str
    state: str
    step: int
    steps: int | None
    age_seconds: float | None
    host: str | None
    pid: int | None
    error: str | None
    settings: dict[str, str]


def entries(root: Path) -> list[ListedRun]:
    """Return all runs of a folder, in the order of ``STATES``, then by name.

    Raises:
        ConfigError: if the folder does not exist, is a file, or cannot be read.
    """
    try:
        with os.scandir(root) as folder:
            names = [entry.name for entry in folder if not entry.name.startswith(".") and entry.is_dir()]
    except OSError as error:
        raise ConfigError(f"{root}: is no folder of runs, {error.strerror}") from error
    return sorted((entry_of(RunDirectory(root, name)) for name in names), key=_in_order)


def entry_of(directory: RunDirectory) -> ListedRun:
    """Return the entry of one run. Damaged files in its directory raise no error."""
    state, status, error = _state(directory)
    try:
        age = max(0.0, time.time() - directory.metrics.stat().st_mtime)
    except OSError:
        age = None
    steps, settings = _read_config(directory)
    host, pid = status.get("host"), status.get("pid")
    return ListedRun(
        run=directory.name,
        path=str(directory.path),
        state=state,
        step=directory.last_step,
        steps=steps,
        age_seconds=age,
        host=host if isinstance(host, str) else None,
        pid=pid if isinstance(pid, int) else None,
        error=error,
        settings=settings,
    )


def _in_order(entry: ListedRun) -> tuple[int, str]:
    """Return the key by which entries are sorted: the place of the state in ``STATES``, then the name."""
    return STATES.index(entry.state), entry.run


def _state(directory: RunDirectory) -> tuple[str, dict[str, Any], str | None]:
    """Return a run's state, its ``status.json`` ({} if unreadable or outdated), and its error in a line (or None)."""
    try:
        status, owned = directory.read("status.json"), directory.is_locked
        while not owned and (again := directory.read("status.json")) != status:  # the run started or ended meanwhile
            status, owned = again, directory.is_locked
        has_status = bool(status) or (directory.path / "status.json").exists()
        begun = has_status or directory.config.exists()
    except OSError as error:
        return "unreadable", {}, f"status.json: {error.strerror}"
    written = status.get("status")
    if written == "done":
        return written, status, None
    if written == "diverged":
        return written, status, f"the loss was not finite at step {status.get('step')}"
    if owned:  # any other status was written by an earlier process
        return "running", status if written == "running" else {}, None
    if has_status and written not in _WRITTEN:
        return "unreadable", status, "status.json: contains no status of a run"
    if written == "failed":
        return written, status, (str(status.get("error")).splitlines() or [""])[-1]
    if written == "interrupted":
        return written, status, None
    return "stale" if begun else "new", status, None


def _read_config(directory: RunDirectory) -> tuple[int | None, dict[str, str]]:
    """Return the number of steps (None if not readable) and ``ListedRun.settings`` of a run, from its config."""
    try:
        config = directory.read_config()
        flat = dict(leaves({key: config.get(key) for key in _PARTS}))
    except (ConfigError, RecursionError):
        return None, {}
    steps = flat.get("train.steps")
    settings = {}
    for path, value in flat.items():
        key = path.removesuffix(".name")
        decides = not path.startswith("runtime.") or path == "runtime.precision"
        if decides and value is not None and key not in NAMED_KEYS and not path.endswith("._target_"):
            settings[sys.intern(key)] = sys.intern(str(value))  # many runs have the same keys and values
    return steps if isinstance(steps, int) else None, settings


def _place(path: str) -> tuple[int, str]:
    """Return the key by which config paths are sorted: the place of the part in ``_PARTS``, then the path."""
    return _PARTS.index(path.partition(".")[0]), path


def differing_settings(listed: Sequence[ListedRun]) -> list[list[str]]:
    """Return for each run ``key=value`` of its settings that are not the same in all runs whose config was read.

    A key is the last part of the config path, or the whole path if several paths end with this part.
    """
    every = [entry.settings for entry in listed]
    paths = sorted({path for settings in every for path in settings}, key=_place)
    differing = [path for path in paths if len({settings.get(path) for settings in every if settings}) > 1]
    ends = {path: path.rpartition(".")[2] for path in differing}
    count = Counter(ends.values())
    keys = {path: end if count[end] == 1 else path for path, end in ends.items()}
    return [[f"{key}={settings[path]}" for path, key in keys.items() if path in settings] for settings in every]
