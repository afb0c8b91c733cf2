"""Run directories -> one tidy table. Called by ``figures``, notebooks, and anyone with pandas."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wdlab.analysis import cache
from wdlab.errors import WdlabError
from wdlab.records.identity import NAMED_KEYS, SCIENTIFIC_KEYS


def load(root: str | Path = "results/runs", names: Iterable[str] | None = None) -> pd.DataFrame:
    """One row per run and log point.

    Columns: ``run, dataset, model, optimizer, regularizer`` (the names of the chosen configs), ``seed``, the settings
    that differ between these runs under their config path (``optimizer.lr``; of ``lr_schedule`` and
    ``regularizer.over_time`` the name stands under the key itself; a list is the text that the command line takes,
    ``[0.9, 0.99]``, so that it can be grouped by), ``step``, then the metrics; a metric that was not due at a step, or
    was not finite, is missing. The last row of each run is ``table.groupby("run").tail(1)``: pandas' ``last()`` would
    give a run that diverged the values of an earlier step.

    What has been read is kept in the folder, see ``wdlab.analysis.records``; the table is always that of the files.

    Args:
        root: the folder of run directories.
        names: which runs; all that have records if not given.

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
    lines = np.repeat(np.arange(len(parts)), [len(part.values) for part in parts])  # the run of each
    of_each_run = pd.DataFrame({column: _joined(described[column].tolist()) for column in (*leading, *varying)})
    of_each_line = of_each_run.take(lines).reset_index(drop=True)
    return pd.DataFrame({**of_each_line, **_metrics(parts, len(lines))})


def _joined(values: Sequence[Any]) -> pd.Series:
    """One value per run, of the type that pandas finds when it joins tables that have one value each."""
    of_each_type = {type(value): value for value in values}.values()
    joined = pd.concat([pd.DataFrame({"value": [value]}) for value in of_each_type])
    return pd.Series(values, dtype=object).astype(joined["value"].dtype)


def _metrics(parts: Sequence[cache.Records], lines: int) -> dict[str, np.ndarray]:
    """The metrics of all runs, in order of appearance. What is a whole number in every line stays one."""
    rows = {name: row for row, name in enumerate(dict.fromkeys(name for part in parts for name, _ in part.columns))}
    values = np.full((len(rows), lines), np.nan)
    whole = np.zeros(len(rows), int)  # in how many runs
    end = 0
    for part in parts:
        start, end = end, end + len(part.values)
        at = [rows[name] for name, _ in part.columns]
        values[at, start:end] = part.values.T
        whole[at] += [is_whole for _, is_whole in part.columns]
    return {name: values[row].astype(int) if whole[row] == len(parts) else values[row] for name, row in rows.items()}


def _settings(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
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
    flat: dict[str, Any] = {}
    for key, value in node.items():
        path = f"{prefix}.{key}"
        if isinstance(value, list):
            value = json.dumps(value, default=str)
        flat |= _flatten(value, path) if isinstance(value, dict) else {path: value}
    return flat
