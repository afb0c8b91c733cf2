"""The recorder of a run: a local file of log lines, and W&B as a mirror that may fail. Called by ``session``."""

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
    """The writer of ``metrics.jsonl``: appends one log line per log point, and passes it to the mirror.

    Args:
        path: ``metrics.jsonl``.
        keep_bytes: the size of the file at the checkpoint from which the run resumes. Later log lines are cut off, and
            will be computed again.
        mirror: receives every log line, those that are kept included.

    Raises:
        CheckpointError: if the file is shorter than ``keep_bytes``, so that log lines from before the checkpoint are
            gone, or if one of them is damaged.
    """

    def __init__(self, path: Path, keep_bytes: int, mirror: "Mirror") -> None:
        found = path.stat().st_size if path.exists() else 0
        if found < keep_bytes:
            raise CheckpointError(
                f"{path}: holds {found} bytes, its checkpoint was written at {keep_bytes}; delete the run"
            )
        self._file = path.open(
            "a+b", buffering=0
        )  # unbuffered, so that a full disk fails the line itself and not a later one
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
        """Append a log line. Numbers that are not finite are written as null."""
        self.last = {key: _finite(value) for key, value in row.items()}
        line = memoryview(json.dumps(self.last).encode() + b"\n")
        before = self._file.tell()
        with writing(self._path, undo=lambda: self._file.truncate(before)):
            while line:
                line = line[self._file.write(line) :]
        self._mirror.log(self.last)

    def sync(self) -> int:
        """Flush the file to the disk and return its size, which the checkpoint stores."""
        with writing(self._path, undo=lambda: None):
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file. The caller finishes the mirror."""
        self._file.close()


def _row(line: bytes) -> dict[str, Any]:
    """Parse a log line; {} if it is damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) and "step" in row else {}


def _finite(value: Any) -> Any:
    """Return a value, None in place of a float that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
