"""One tidy table of run directories. Called by ``tables``, notebooks, and anyone with pandas."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wdlab.analysis import cache
from wdlab.analysis.records import Records
from wdlab.errors import WdlabError
from wdlab.records.identity import NAMED_KEYS, SCIENTIFIC_KEYS


def load(root: str | Path = "results/runs", names: Iterable[str] | None = None) -> pd.DataFrame:
    """Return a table with one row per run and log point.

    Columns: ``run, dataset, model, optimizer, regularizer`` (the names of the chosen configs), ``seed``, the settings
    that differ between these runs, ``step``, then the metrics.

    A setting is named by its config path (``optimizer.lr``). The names of ``lr_schedule`` and
    ``regularizer.over_time`` are under these keys themselves. A list is written as on the command line
    (``[0.9, 0.99]``), so that it can be grouped by.

    A metric that was not due at a step, or not finite, is missing. The last row of each run is
    ``table.groupby("run").tail(1)``; pandas' ``last()`` would give a run that diverged the values of an earlier step.

    Args:
        root: the folder of run directories. Its cache is used and updated, see ``wdlab.analysis.cache``.
        names: the runs to load; all that have records if not given.

    Raises:
        WdlabError: if a named run has no records, or a file of a run is damaged.
    """
    root = Path(root)
    wanted = list(names) if names is not None else None
    found = cache.read(root, wanted)
    for name in wanted or ():
        if name not in found:
            raise WdlabError(f"{root / name}: has no records")
    chosen = list(found) if wanted is None else wanted
    if not chosen:
        return pd.DataFrame()
    parts = [found[name] for name in chosen]
    described = pd.DataFrame([{"run": name, **_settings(root / name, found[name].config)} for name in chosen])
    leading = ["run", *NAMED_KEYS, "seed"]
    varying = [c for c in described if c not in leading and described[c].map(repr).nunique() > 1]
    lines = np.repeat(np.arange(len(parts)), [len(part.values) for part in parts])  # the run of each row
    run_columns = pd.DataFrame({column: _joined(described[column].tolist()) for column in (*leading, *varying)})
    row_columns = run_columns.take(lines).reset_index(drop=True)
    return pd.DataFrame({**row_columns, **_metrics(parts, len(lines))})


def _joined(values: Sequence[Any]) -> pd.Series:
    """Return a column with one value per run, of the type that pandas gives to joined tables of one row each."""
    of_each_type = {type(value): value for value in values}.values()
    joined = pd.concat([pd.DataFrame({"value": [value]}) for value in of_each_type])
    return pd.Series(values, dtype=object).astype(joined["value"].dtype)


def _metrics(parts: Sequence[Records], lines: int) -> dict[str, np.ndarray]:
    """Return the metrics of all runs, in order of appearance. A metric that is an integer in every row stays one."""
    rows = {name: row for row, name in enumerate(dict.fromkeys(name for part in parts for name, _ in part.columns))}
    values = np.full((len(rows), lines), np.nan)
    integers = np.zeros(len(rows), int)  # number of runs in which a metric is an integer everywhere
    end = 0
    for part in parts:
        start, end = end, end + len(part.values)
        at = [rows[name] for name, _ in part.columns]
        values[at, start:end] = part.values.T
        integers[at] += [is_integer for _, is_integer in part.columns]
    return {name: values[row].astype(int) if integers[row] == len(parts) else values[row] for name, row in rows.items()}


def _settings(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scientific settings of a config, flat, by config path.

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
    """Return nested settings as one dict by path; a list becomes the text that the command line takes."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        path = f"{prefix}.{key}"
        if isinstance(value, list):
            value = json.dumps(value, default=str)
        flat |= _flatten(value, path) if isinstance(value, dict) else {path: value}
    return flat
