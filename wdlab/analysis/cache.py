"""A cache of the parsed records of runs: ``.records.parquet`` in the folder of the runs. Called by ``load``.

The cache only saves time. The entry of a run is used while size and modification time of its two source files
(``config.yaml``, ``metrics.jsonl``) are unchanged. A cache that is missing or damaged is ignored and written again. The
file can be deleted at any time.
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
from wdlab.analysis.records import ColumnTypes, Records
from wdlab.records.directory import RunDirectory

CACHE = ".records.parquet"
_SCHEMA = pa.schema(
    {
        "run": pa.string(),
        "source": pa.string(),  # size and modification time of the source files when they were parsed
        "config": pa.string(),
        "columns": pa.string(),
        "values": pa.large_list(pa.field("element", pa.float64())),  # all log lines, one after another
    },
    metadata={"format": "2"},
)


def read(root: Path, names: Iterable[str] | None = None) -> dict[str, Records]:
    """Return the records of runs by name, and update the cache. Runs without log lines are left out.

    Args:
        root: the folder of run directories.
        names: the names of the runs to read; None for all runs of the folder.

    Raises:
        WdlabError: naming a file that is damaged, or a ``config.yaml`` that is missing.
    """
    wanted = list(names) if names is not None else sorted(path.parent.name for path in root.glob("*/metrics.jsonl"))
    cached = _read_cache(root / CACHE)
    entries: dict[str, Records] = {}
    for name in dict.fromkeys(wanted):
        source, entry = _source(root / name), cached.get(name)
        if entry is None or entry.source != source:
            entry = records.parse(RunDirectory(root, name), source)
        if entry is not None:
            entries[name] = entry
    kept = entries if names is None else cached | entries
    if len(kept) < len(cached) or any(entry is not cached.get(name) for name, entry in kept.items()):
        _write_cache(root / CACHE, kept)
    return entries


def _source(folder: Path) -> str:
    """Return size and modification time of a run's two source files as text; "" if one of the files is missing."""
    try:
        stats = (folder / "config.yaml").stat(), (folder / "metrics.jsonl").stat()
    except OSError:
        return ""
    return " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in stats)


def _read_cache(path: Path) -> dict[str, Records]:
    """Return the entries of a cache file by run name; {} if the file is missing, damaged, or of another format."""
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
def _columns(text: str) -> ColumnTypes:
    """Return a run's columns, parsed from JSON. Most runs of a folder share one text, which is parsed only once."""
    return tuple((name, is_integer) for name, is_integer in json.loads(text))


def _write_cache(path: Path, entries: Mapping[str, Records]) -> None:
    """Replace the cache file in one step, so that other processes never read a part. An OSError is ignored."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    rows = [row for row in (_row(name, entry) for name, entry in entries.items()) if row]
    with contextlib.suppress(OSError):
        try:
            pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), temporary, write_page_checksum=True)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _row(name: str, entry: Records) -> dict[str, Any] | None:
    """Return a run's row of the cache file; None if its config contains a date or its name is not valid text."""
    try:
        name.encode()
        config = json.dumps(entry.config)
    except (TypeError, ValueError):
        return None
    columns, values = json.dumps(entry.columns), entry.values.ravel()
    return {"run": name, "source": entry.source, "config": config, "columns": columns, "values": values}
