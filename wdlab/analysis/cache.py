"""A cache of the parsed records of runs: ``.records.parquet`` in the folder of the runs. Called by ``load``.

The cache only saves time. An entry is used while size and modification time of both source files are unchanged; a cache
that is missing or damaged is ignored and written again. It can be deleted at any time.
"""

import contextlib
import functools
import json
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wdlab.analysis import records
from wdlab.analysis.records import Columns, Records
from wdlab.records.directory import RunDirectory

CACHE = ".records.parquet"
_SCHEMA = pa.schema(
    {
        "run": pa.string(),
        "source": pa.string(),  # size and time of the files when they were parsed
        "config": pa.string(),
        "columns": pa.string(),
        "values": pa.large_list(pa.field("element", pa.float64())),  # of all log lines, one after the other
    },
    metadata={"format": "2"},
)


def read(root: Path, names: Iterable[str] | None = None) -> dict[str, Records]:
    """Return the records of runs under ``root``; runs without log lines are left out.

    Args:
        root: the folder of run directories.
        names: the runs to read; all if not given.

    Raises:
        WdlabError: naming a file that is damaged, or a ``config.yaml`` that is missing.
    """
    wanted = list(names) if names is not None else sorted(path.parent.name for path in root.glob("*/metrics.jsonl"))
    cached = _read_cache(root / CACHE)
    found: dict[str, Records] = {}
    for name in dict.fromkeys(wanted):
        source, entry = _source(root / name), cached.get(name)
        if entry is None or entry.source != source:
            entry = records.parse(RunDirectory(root, name), source)
        if entry is not None:
            found[name] = entry
    kept = found if names is None else cached | found
    if len(kept) < len(cached) or any(entry is not cached.get(name) for name, entry in kept.items()):
        _write_cache(root / CACHE, kept)
    return found


def _source(folder: Path) -> str:
    """Return size and modification time of a run's two source files, "" if one of them is missing."""
    try:
        stats = (folder / "config.yaml").stat(), (folder / "metrics.jsonl").stat()
    except OSError:
        return ""
    return " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in stats)


def _read_cache(path: Path) -> dict[str, Records]:
    """Return the entries of a cache file, none if it is missing, damaged, or of another format."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException):
        return {}
    if not table.schema.equals(_SCHEMA, check_metadata=True):
        return {}
    lists = table["values"].combine_chunks()
    ends, values = lists.offsets.to_numpy(), lists.values.to_numpy()
    entries = zip(*(table[name].to_pylist() for name in _SCHEMA.names[:-1]), ends[:-1], ends[1:], strict=True)
    return {
        name: Records(source, json.loads(config), columns := _columns(text), values[a:b].reshape(-1, len(columns)))
        for name, source, config, text, a, b in entries
    }


@functools.lru_cache
def _columns(text: str) -> Columns:
    """Parse the columns of a run. Most runs of a folder share them, so they are parsed once for all."""
    return tuple((name, is_integer) for name, is_integer in json.loads(text))


def _write_cache(path: Path, entries: Mapping[str, Records]) -> None:
    """Replace the cache file, if possible. Other processes see the old file or the new one, never a part."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    rows = [row for row in (_row(name, entry) for name, entry in entries.items()) if row]
    with contextlib.suppress(OSError):
        try:
            pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), temporary, write_page_checksum=True)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _row(name: str, entry: Records) -> dict[str, Any] | None:
    """Return a row of the cache file; None for what it cannot hold: a config with a date, a name that is not text."""
    try:
        name.encode()
        config = json.dumps(entry.config)
    except (TypeError, ValueError):
        return None
    columns, values = json.dumps(entry.columns), entry.values.ravel()
    return {"run": name, "source": entry.source, "config": config, "columns": columns, "values": values}
