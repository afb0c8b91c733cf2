"""The tables of a figure: its runs, its simulations, what is measured of its checkpoints, and where they are kept."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from wdlab.analysis import load
from wdlab.analysis.declaration import FigureRun
from wdlab.records.directory import RunDirectory
from wdlab.records.files import write_atomically

IN_A_RUNS_NAME = ("dataset", "model", "optimizer")  # and so not repeated in every row of what was measured on it


def of_runs(declared: Mapping[str, Any], figure_jobs: list[FigureRun]) -> pd.DataFrame:
    """The tidy table of a figure's runs and simulations, with the panel of each in a first column."""
    parts = []
    if figure_jobs:
        panels = pd.DataFrame([{"panel": job.panel, "run": job.directory.name} for job in figure_jobs])
        rows = load(figure_jobs[0].directory.path.parent, panels["run"].unique())
        parts.append(panels.merge(rows, on="run", how="left"))
    for panel in declared["at"]["panels"]:
        if "simulate" in panel:
            settings = dict(panel["simulate"])
            rows = named(settings.pop("function"))(**settings)
            rows.insert(0, "panel", panel["panel"])
            parts.append(rows)
    joined = pd.concat(parts, ignore_index=True)
    for column, formula in declared.get("derived", {}).items():
        joined[column] = joined.eval(formula)
    return joined


def of_checkpoints(declared: Mapping[str, Any], figure_jobs: list[FigureRun]) -> pd.DataFrame | None:
    """What the declaration's ``measure`` finds on the runs, their panels and settings in front; None without one.

    A run is measured once; what was found stays in its directory, also when the code that measures has changed: delete
    it to measure anew. Of a run that diverged nothing is known: nan.
    """
    if "measure" not in declared:
        return None
    settings = of_runs(declared, figure_jobs)
    dropped = (*_metrics(settings), *IN_A_RUNS_NAME)
    settings = settings[[c for c in settings if c not in dropped]].drop_duplicates(["panel", "run"])
    parts = []
    for directory in directories(figure_jobs):
        kept = directory.path / f"{declared['measure'].rpartition('.')[2]}.csv"
        if not kept.exists():
            write_atomically(kept, named(declared["measure"])(directory).to_csv(index=False))
        found = pd.read_csv(kept).assign(run=directory.name)
        if directory.status == "diverged":
            found[found.select_dtypes("float").columns] = float("nan")
        parts.append(found)
    return settings.merge(pd.concat(parts, ignore_index=True), on="run")


def directories(figure_jobs: list[FigureRun]) -> list[RunDirectory]:
    """Those of the figure's runs, each once: panels may share one."""
    return list({job.directory.name: job.directory for job in figure_jobs}.values())


def _metrics(rows: pd.DataFrame) -> list[str]:
    """The columns from the step on."""
    return list(rows.columns[list(rows).index("step") :])


def named(dotted: str) -> Callable[..., Any]:
    module, _, function = dotted.rpartition(".")
    return getattr(importlib.import_module(module), function)


@dataclass(frozen=True)
class Files:
    """Where the committed parts of a figure are; ``measured`` only if it measures checkpoints."""

    table: Path
    measured: Path
    picture: Path
    print_picture: Path
    verdicts: Path

    @classmethod
    def of(cls, name: str, scale: str, results: str | Path = "results") -> "Files":
        """The files of a figure at a scale under ``results``."""
        root = Path(results)
        return cls(
            table=root / "tables" / scale / f"{name}.csv",
            measured=root / "tables" / scale / f"{name}_measured.csv",
            picture=root / "figures" / scale / f"{name}.png",
            print_picture=root / "figures" / scale / f"{name}.pdf",
            verdicts=root / "claims" / scale / f"{name}.json",
        )


def read_tables(declared: Mapping[str, Any], files: Files) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The table of a figure and its measurements, if it has some, as they stand on disk."""
    return pd.read_csv(files.table), pd.read_csv(files.measured) if "measure" in declared else None
