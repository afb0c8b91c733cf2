"""The records of one run (config and log lines), parsed from its files. Called by ``cache``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wdlab.errors import WdlabError
from wdlab.records.directory import RunDirectory

ColumnTypes = tuple[tuple[str, bool], ...]  # for each column its name, and True if all its values are integers


@dataclass(frozen=True)
class Records:
    """The config and the log lines of one run.

    Args:
        source: size and modification time of the two files, as text, before they were read; "" if a file is missing.
        config: the content of ``config.yaml``. The caller must not change it.
        columns: the columns of ``metrics.jsonl``, in order of appearance.
        values: float64 array (log lines, columns); NaN where a log line has no value.
    """

    source: str
    config: dict[str, Any]
    columns: ColumnTypes
    values: np.ndarray


def parse(directory: RunDirectory, source: str) -> Records | None:
    """Return the records of a run, parsed from its files; None if the run has no log lines.

    Args:
        directory: the directory of the run.
        source: stored in the records, see :class:`Records`.

    Raises:
        WdlabError: naming a file that is damaged, or a ``config.yaml`` that is missing.
    """
    rows = _log_lines(directory.metrics)
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
    return Records(source, directory.read_config(), tuple(columns), values)


def _log_lines(path: Path) -> list[dict[str, Any]]:
    """Return the log lines of ``metrics.jsonl`` without an incomplete last line; [] if the file is missing.

    Raises:
        WdlabError: if the file cannot be read, or a complete line is damaged.
    """
    try:
        complete, _, _ = path.read_bytes().rpartition(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise WdlabError(f"{path}: cannot be read, {error}") from error
    rows = []
    for number, line in enumerate(complete.split(b"\n") if complete else (), start=1):
        try:
            rows.append(dict(json.loads(line).items()))
        except (ValueError, AttributeError, RecursionError) as error:
            raise WdlabError(f"{path}: line {number} is damaged, it is no JSON object") from error
    return rows
