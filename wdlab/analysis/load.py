"""Run directories -> one tidy table. Called by ``figures``, notebooks, and anyone with pandas."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from wdlab import runs
from wdlab.errors import WdlabError

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(root: str | Path = "results/runs", names: Iterable[str] | None = None) -> pd.DataFrame:
    """One row per run and log point.

    Columns: ``run, dataset, model, optimizer, regularizer`` (the names of the chosen configs), ``seed``, the settings
    that differ between these runs under their config path (``optimizer.lr``; of ``lr_schedule`` and
    ``regularizer.over_time`` the name stands under the key itself), ``step``, then the metrics; a metric that
    was not due at a step, or was not finite, is missing.

    Args:
        root: the folder of run directories.
        names: which runs; all that have records if not given.

    Raises:
        WdlabError: if a named run has no records.
    """
    root = Path(root)
    wanted = sorted(path.parent.name for path in root.glob("*/metrics.jsonl")) if names is None else list(names)
    settings: list[dict[str, Any]] = []
    records: list[pd.DataFrame] = []
    for name in wanted:
        directory = runs.RunDirectory(root, name)
        rows = _read_lines(directory.metrics)
        if not rows and names is None:
            continue  # just started
        if not rows:
            raise WdlabError(f"{directory.path}: has no records")
        settings.append({"run": name, **_settings(directory.path / "config.yaml")})
        records.append(pd.DataFrame(rows))
    if not records:
        return pd.DataFrame()
    described = pd.DataFrame(settings)
    leading = ["run", *runs.NAMED_KEYS, "seed"]
    varying = [c for c in described if c not in leading and described[c].map(repr).nunique() > 1]
    columns = [*leading, *varying]
    for row, part in zip(described[columns].to_dict("records"), records, strict=True):
        for position, column in enumerate(columns):
            part.insert(position, column, [row[column]] * len(part))
    return pd.concat(records, ignore_index=True)


def _settings(path: Path) -> dict[str, Any]:
    config = yaml.load(path.read_text(), Loader=_Loader)
    flat: dict[str, Any] = {"seed": config["seed"], "runtime.precision": config["runtime"]["precision"]}
    for key in runs.SCIENTIFIC_KEYS:
        if key != "seed":
            flat |= _flatten(config[key], key)
    for key in (*runs.NAMED_KEYS, "lr_schedule"):
        flat[key] = flat.pop(f"{key}.name")
    if "regularizer.over_time.name" in flat:
        flat["regularizer.over_time"] = flat.pop("regularizer.over_time.name")
    return {key: value for key, value in flat.items() if not key.endswith("._target_")}


def _flatten(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        path = f"{prefix}.{key}"
        flat |= _flatten(value, path) if isinstance(value, Mapping) else {path: value}
    return flat


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of ``metrics.jsonl``; a last line that is still being written is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
