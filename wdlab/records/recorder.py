"""The records of a run: a local table, always, and W&B as a mirror that may fail. Called by the loop and ``train``."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wdlab.errors import CheckpointError
from wdlab.records.files import writing
from wdlab.records.wandb_mirror import Mirror


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


def _row(line: bytes) -> dict[str, Any]:
    """A line of the table, {} if it is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) and "step" in row else {}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
