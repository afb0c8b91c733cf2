"""What run directories hold, parsed once. Called by ``load``.

What has been parsed stays in ``.records.parquet`` of the runs' folder. That file vouches for nothing: an entry counts
while both files of its run are the very same on the disk (inode, size, times), and whoever cannot read or write it
parses again. It can be deleted at any time.
"""

import contextlib
import functools
import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wdlab.errors import WdlabError
from wdlab.records.directory import RunDirectory

KEPT = ".records.parquet"
SETTLED_NS = 2_000_000_000  # a file younger than that may change again without a change of its times or its size
_SCHEMA = pa.schema(
    {
        "run": pa.string(),
        "files": pa.string(),  # what they were when they were parsed
        "config": pa.string(),
        "columns": pa.string(),
        "values": pa.large_list(pa.field("element", pa.float64())),  # of all lines, one after the other
    },
    metadata={"format": "1"},
)

Columns = tuple[tuple[str, bool], ...]  # name; whether it is a whole number in every line


@dataclass(frozen=True)
class Records:
    """A run as its files have it.

    Args:
        config: all of ``config.yaml``; not to be changed.
        columns: of ``metrics.jsonl``, in order of appearance.
        values: float64 (lines, columns); NaN where a line has no value.
    """

    config: dict[str, Any]
    columns: Columns
    values: np.ndarray


def read(root: Path, names: Iterable[str] | None = None) -> dict[str, Records]:
    """Those runs under ``root`` that have records.

    Args:
        root: the folder of run directories.
        names: which to look at; all if not given.

    Raises:
        WdlabError: naming a file that is damaged; ``config.yaml`` may also be missing.
    """
    every = names is None
    wanted = sorted(path.parent.name for path in root.glob("*/metrics.jsonl")) if every else list(dict.fromkeys(names))
    kept = _Kept(root / KEPT)
    started = time.monotonic_ns()
    found: dict[str, Records | None] = {}
    parsed: dict[str, _Files] = {}
    for name in wanted:
        files = _Files.of(root / name)
        records = kept.get(name, files)
        if records is None:
            records = _parse(RunDirectory(root, name))
            parsed[name] = files
        found[name] = records
    fresh = {name: (files, found[name]) for name, files in parsed.items() if files is not None and found[name]}
    gone = set(kept.rows) - set(wanted) if every else set()
    if fresh or gone:
        kept.write(fresh, gone | set(parsed), time.monotonic_ns() - started)
    return {name: records for name, records in found.items() if records is not None}


def _parse(directory: RunDirectory) -> Records | None:
    rows = _lines(directory.metrics)
    if not rows:
        return None
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns, values = [], np.empty((len(rows), len(names)))
    for position, name in enumerate(names):
        column = [row.get(name) for row in rows]
        kinds = {type(value) for value in column}
        if not kinds <= {int, float, type(None)}:
            raise WdlabError(f"{directory.metrics}: {name} is not a number in every line")
        columns.append((name, kinds == {int}))
        values[:, position] = column
    return Records(directory.read_config(), tuple(columns), values)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of ``metrics.jsonl``; a last line that is still being written is left out."""
    try:
        whole, _, _ = path.read_bytes().rpartition(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise WdlabError(f"{path}: cannot be read, {error}") from error
    rows = []
    for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
        try:
            rows.append(dict(json.loads(line).items()))
        except (ValueError, AttributeError, RecursionError) as error:
            raise WdlabError(f"{path}: line {number} is damaged, it is no JSON object") from error
    return rows


@dataclass(frozen=True)
class _Files:
    """By what the two files of a run are known again."""

    text: str
    changed_ns: int  # the newest of their times, by the clock of the filesystem

    @classmethod
    def of(cls, folder: Path) -> "_Files | None":
        """None if one of them is not there."""
        try:
            both = (folder / "config.yaml").stat(), (folder / "metrics.jsonl").stat()
        except OSError:
            return None
        text = " ".join(f"{s.st_ino}:{s.st_size}:{s.st_mtime_ns}:{s.st_ctime_ns}" for s in both)
        return cls(text, max(max(s.st_mtime_ns, s.st_ctime_ns) for s in both))


class _Kept:
    """The file of what has been parsed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._table = pq.read_table(path, page_checksum_verification=True)
            if not self._table.schema.equals(_SCHEMA, check_metadata=True):
                raise ValueError("is of another format")
        except (OSError, ValueError, pa.ArrowException):  # not there, damaged, or not ours
            self._table = _SCHEMA.empty_table()
        self._table = self._table.combine_chunks()
        self.rows = {name: row for row, name in enumerate(self._table["run"].to_pylist())}
        self._files, self._configs, self._columns = (
            self._table[name].to_pylist() for name in ("files", "config", "columns")
        )
        lists = self._table["values"].combine_chunks()
        self._ends, self._values = lists.offsets.to_numpy(), lists.values.to_numpy()

    def get(self, name: str, files: _Files | None) -> Records | None:
        """The run's records, if they are those of the files as they are now."""
        row = self.rows.get(name)
        if row is None or files is None or self._files[row] != files.text:
            return None
        columns = _parse_columns(self._columns[row])
        values = self._values[self._ends[row] : self._ends[row + 1]]
        return Records(json.loads(self._configs[row]), columns, values.reshape(-1, len(columns)))

    def write(self, fresh: dict[str, tuple[_Files, Records]], dropped: set[str], elapsed_ns: int) -> None:
        """Put ``fresh`` records, parsed within the last ``elapsed_ns``, in place of ``dropped`` ones, if possible."""
        temporary = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}.tmp")
        with contextlib.suppress(OSError):
            try:
                temporary.touch(exist_ok=False)
                settled = temporary.stat().st_mtime_ns - elapsed_ns - SETTLED_NS
                entries = [_entry(name, *both) for name, both in fresh.items() if both[0].changed_ns < settled]
                new = pa.Table.from_pylist([entry for entry in entries if entry is not None], schema=_SCHEMA)
                stay = pa.array([row for name, row in self.rows.items() if name not in dropped], pa.int64())
                if len(new) or len(stay) < len(self.rows):
                    pq.write_table(pa.concat_tables([self._table.take(stay), new]), temporary, write_page_checksum=True)
                    temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)


def _entry(name: str, files: _Files, records: Records) -> dict[str, Any] | None:
    """None if the config has values that JSON has not, such as dates, or the name is no text: always parsed then."""
    try:
        name.encode()
        config = json.dumps(records.config)
    except (TypeError, ValueError):
        return None
    columns, values = json.dumps(records.columns), records.values.ravel()
    return {"run": name, "files": files.text, "config": config, "columns": columns, "values": values}


@functools.lru_cache
def _parse_columns(text: str) -> Columns:
    return tuple((name, whole) for name, whole in json.loads(text))
