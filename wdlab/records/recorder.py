"""The recorder of a run: writes log lines to a local file, and to a mirror that may fail (W&B). Used by ``session``."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wdlab.errors import CheckpointError
from wdlab.records.files import undone_on_error
from wdlab.records.wandb_mirror import Mirror


class Recorder:
    """The writer of ``metrics.jsonl``: appends one log line per log point, and passes the line to the mirror.

    Args:
        path: the path of ``metrics.jsonl``.
        keep_bytes: the size of the file when the checkpoint was written from which the run resumes; 0 for a new run.
            Later log lines are cut off, since the run will compute them again.
        mirror: receives every log line, including the lines of earlier sessions that are kept.

    Attributes:
        last: the newest log line, values by column; {} before the first line.

    Raises:
        CheckpointError: if the file is shorter than ``keep_bytes``, so that log lines from before the checkpoint are
            lost, or if a line that is kept is damaged.
    """

    def __init__(self, path: Path, keep_bytes: int, mirror: "Mirror") -> None:
        size = path.stat().st_size if path.exists() else 0
        if size < keep_bytes:
            raise CheckpointError(
                f"{path}: holds {size} bytes, its checkpoint was written at {keep_bytes}; delete the run"
            )
        # Unbuffered: with a buffer, a full disk raises its error when a later line is written.
        self._file = path.open("a+b", buffering=0)
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
        """Append a log line to the file and pass it to the mirror. Numbers that are not finite are written as null."""
        self.last = {key: _finite(value) for key, value in row.items()}
        line = memoryview(json.dumps(self.last).encode() + b"\n")
        before = self._file.tell()
        with undone_on_error(self._path, undo=lambda: self._file.truncate(before)):
            while line:
                line = line[self._file.write(line) :]
        self._mirror.log(self.last)

    def sync(self) -> int:
        """Flush the file to the disk and return its size in bytes, which the checkpoint stores."""
        with undone_on_error(self._path, undo=lambda: None):
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file. The mirror stays open, and the caller has to finish it."""
        self._file.close()


def _row(line: bytes) -> dict[str, Any]:
    """Return a log line as a dict; {} if the line is damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) and "step" in row else {}


def _finite(value: Any) -> Any:
    """Return ``value``, or None if it is a float that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
