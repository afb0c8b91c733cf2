"""The function that loads run directories as one tidy table. Called by ``tables``, ``curves`` and notebooks."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wdlab.analysis import cache
from wdlab.analysis.records import Records
from wdlab.errors import WdlabError
from wdlab.records.identity import NAMED_KEYS, SCIENTIFIC_KEYS


def load(
    root: str | Path = "results/runs", names: Iterable[str] | None = None, also: Collection[str] = ()
) -> pd.DataFrame:
    """Return a table with one row per run and log point.

    Columns: ``run, dataset, model, optimizer, regularizer`` (their names), ``seed``, the settings that differ between
    the loaded runs, ``step``, then the metrics.

    The column of a setting is named by its config path (``optimizer.lr``). The columns ``lr_schedule`` and
    ``regularizer.over_time`` contain the names of the chosen config files. A setting that is a list becomes text
    (``[0.9, 0.99]``), so that pandas can group by its column.

    A metric that was not due at a step, or was not finite, is NaN. The last row of each run is
    ``table.groupby("run").tail(1)``. pandas' ``last()`` would return values of an earlier step for a run that diverged.

    Args:
        root: the folder of run directories. Its cache is used and updated, see ``wdlab.analysis.cache``.
        names: the names of the runs to load; None for all runs of the folder that have log lines.
        also: the columns of settings that the table gets also if the loaded runs do not differ in them.

    Raises:
        WdlabError: if the folder does not exist or has no run with log lines, a run in ``names`` has none, or a file of
            a run is damaged.
    """
    root = Path(root)
    if not root.is_dir():
        raise WdlabError(f"{root}: no such folder of runs")
    wanted = list(names) if names is not None else None
    records_of = cache.read(root, wanted)
    for name in wanted or ():
        if name not in records_of:
            raise WdlabError(f"{root / name}: has no records")
    chosen = list(records_of) if wanted is None else wanted
    if not chosen and names is None:
        raise WdlabError(f"{root}: has no run with records")
    if not chosen:
        return pd.DataFrame()
    parts = [records_of[name] for name in chosen]
    described = pd.DataFrame([{"run": name, **settings(records_of[name].config, root / name)} for name in chosen])
    leading = ["run", *NAMED_KEYS, "seed"]
    varying = [c for c in described if c not in leading and (c in also or described[c].map(repr).nunique() > 1)]
    lines = np.repeat(np.arange(len(parts)), [len(part.values) for part in parts])  # the index of the run of each row
    run_columns = pd.DataFrame({column: _joined(described[column].tolist()) for column in (*leading, *varying)})
    row_columns = run_columns.take(lines).reset_index(drop=True)
    return pd.DataFrame({**row_columns, **_metrics(parts, len(lines))})


def _joined(values: Sequence[Any]) -> pd.Series:
    """Return values as a column, with the dtype that ``pandas.concat`` chooses for tables of one value each."""
    of_each_type = {type(value): value for value in values}.values()
    joined = pd.concat([pd.DataFrame({"value": [value]}) for value in of_each_type])
    return pd.Series(values, dtype=object).astype(joined["value"].dtype)


def _metrics(parts: Sequence[Records], lines: int) -> dict[str, np.ndarray]:
    """Return the values of each metric for the log lines of all runs, one run after another.

    Args:
        parts: the records of the runs.
        lines: the number of log lines of all runs.

    Returns:
        Arrays (lines,) by metric, in order of appearance: integers if all values of the metric are, else floats, with
        NaN where a log line has no value.
    """
    rows = {name: row for row, name in enumerate(dict.fromkeys(name for part in parts for name, _ in part.columns))}
    values = np.full((len(rows), lines), np.nan)
    integers = np.zeros(len(rows), int)  # number of runs in which a metric is an integer everywhere
    end = 0
    for part in parts:
        start, end = end, end + len(part.values)
        own_rows = [rows[name] for name, _ in part.columns]
        values[own_rows, start:end] = part.values.T
        integers[own_rows] += [is_integer for _, is_integer in part.columns]
    return {name: values[row].astype(int) if integers[row] == len(parts) else values[row] for name, row in rows.items()}


def settings(config: Mapping[str, Any], path: Path = Path()) -> dict[str, Any]:
    """Return the settings of a config that decide a run's numbers, as a flat dict by column name, see :func:`load`.

    Args:
        config: the run's config.
        path: the run directory, for the error.

    Raises:
        WdlabError: if a part of the config is missing.
    """
    try:
        flat: dict[str, Any] = {"seed": config["seed"], "runtime.precision": config["runtime"]["precision"]}
        for key in SCIENTIFIC_KEYS:
            if key != "seed":
                flat |= _flatten(config[key], key)
        for key in (*NAMED_KEYS, "lr_schedule"):
            flat[key] = flat.pop(f"{key}.name")
    except (KeyError, TypeError, AttributeError) as error:
        raise WdlabError(f"{path / 'config.yaml'}: is no config of a run, {error} is missing") from error
    if "regularizer.over_time.name" in flat:
        flat["regularizer.over_time"] = flat.pop("regularizer.over_time.name")
    return {key: value for key, value in flat.items() if not key.endswith("._target_")}


def _flatten(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return nested settings as a flat dict by config path under ``prefix``. A list becomes its JSON text."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        path = f"{prefix}.{key}"
        if isinstance(value, list):
            value = json.dumps(value, default=str)
        flat |= _flatten(value, path) if isinstance(value, dict) else {path: value}
    return flat
