"""The two tables of a figure: one of its runs and simulations, one of probes (measurements of its checkpoints)."""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from wdlab.analysis import load, selection
from wdlab.analysis.declaration import Ends, FigureRun, figure_runs
from wdlab.records.directory import RunDirectory
from wdlab.records.files import write_atomically

COLUMNS_IN_RUN_NAME = ("dataset", "model", "optimizer")  # columns that a table of probes does not repeat


@dataclass(frozen=True)
class FigureFiles:
    """The paths of a figure's files at one scale. The file ``measured`` exists only if the figure has probes."""

    table: Path
    measured: Path
    picture: Path
    print_picture: Path
    verdicts: Path

    @classmethod
    def of(cls, name: str, scale: str, results: str | Path = "results") -> "FigureFiles":
        """Return the paths of the files of the figure ``name`` at a scale, in the folder ``results``."""
        root = Path(results)
        return cls(
            table=root / "tables" / scale / f"{name}.csv",
            measured=root / "tables" / scale / f"{name}_measured.csv",
            picture=root / "figures" / scale / f"{name}.png",
            print_picture=root / "figures" / scale / f"{name}.pdf",
            verdicts=root / "claims" / scale / f"{name}.json",
        )


def read(declared: Mapping[str, Any], files: FigureFiles) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Return the tables in a figure's files: the table of the runs, and of the probes (None if there are no probes)."""
    return pd.read_csv(files.table), pd.read_csv(files.measured) if "measure" in declared else None


def holds_the_declared_runs(declared: Mapping[str, Any], files: FigureFiles) -> bool:
    """Return whether a figure's table has exactly the runs, and the simulated panels, that are declared now."""
    table = pd.read_csv(files.table)
    simulated = {panel["panel"] for panel in declared["at"]["panels"] if "simulate" in panel}
    of_runs = ~table["panel"].isin(simulated)
    trained = table[of_runs]
    return set(table.loc[~of_runs, "panel"]) == simulated and set(trained["run"]) == {
        run.directory.name for run in figure_runs(declared, "", ends_in(trained))
    }


def ends_in(rows: pd.DataFrame) -> Ends:
    """Return the function by which ``figure_runs`` finds the last value of a column in the rows of finished runs."""
    if "stage" not in rows:
        return lambda *_: None
    last, lost = selection.last_lines(rows).drop_duplicates("run").set_index("run"), selection.diverged(rows)

    def end_of(directory: RunDirectory, column: str) -> float | None:
        name = directory.name
        return None if name not in last.index else math.nan if name in lost else float(last.loc[name, column])

    return end_of


def run_table(declared: Mapping[str, Any], runs: list[FigureRun], also: Sequence[str] = ()) -> pd.DataFrame:
    """Return the tidy table of a figure's runs and simulations, with the panel in the first column.

    The runs of a search have three more columns: the ``method``, the ``stage`` (``trial`` or ``judged``), and the
    number of the ``trial``, or of that which was chosen.

    Args:
        declared: the declaration, as ``declaration.read`` returns it.
        runs: the runs of the figure; [] if it has only simulations.
        also: the columns of settings that the table gets also if the runs do not differ in them.

    Returns:
        The table. With ``lines: last`` in the declaration it has only the last row of each run, with ``lines: {after:
        0.8}`` only those after this share of a panel's steps. With ``metrics`` it has only these columns after
        ``step``.
    """
    parts = []
    if runs:
        panels = pd.DataFrame([{"panel": run.panel, **run.searched, "run": run.directory.name} for run in runs])
        rows = load(runs[0].directory.path.parent, panels["run"].unique(), also)
        parts.append(panels.merge(rows, on="run", how="left"))
    for panel in declared["at"]["panels"]:
        if "simulate" in panel:
            settings = dict(panel["simulate"])
            rows = import_function(settings.pop("function"))(**settings)
            rows.insert(0, "panel", panel["panel"])
            parts.append(rows)
    joined = pd.concat(parts, ignore_index=True)
    for column, formula in declared.get("derived", {}).items():
        joined[column] = joined.eval(formula)
    for panel in declared["at"]["panels"]:
        of_panel = joined["panel"] == panel["panel"]
        for column, formula in panel.get("derived", {}).items():
            joined.loc[of_panel, column] = joined[of_panel].eval(formula)
    return shortened(declared, joined)


def shortened(declared: Mapping[str, Any], rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows and columns of a table that a declaration keeps, see :func:`run_table`."""
    lines = declared.get("lines")
    if lines == "last":
        rows = selection.last_lines(rows)
    elif lines:
        rows = rows[rows["step"] > lines["after"] * rows.groupby("panel")["step"].transform("max")]
    if "metrics" in declared:
        rows = rows[[*rows.columns[: list(rows).index("step") + 1], *declared["metrics"]]]
    return rows


def probe_table(declared: Mapping[str, Any], runs: list[FigureRun], also: Sequence[str] = ()) -> pd.DataFrame | None:
    """Return the table of what the declaration's function ``measure`` measures on each run's checkpoint.

    The first columns are the panel and the settings of the run. A run is measured once. The result stays in the run's
    directory as a CSV file, also if the code of the function changes; delete the file to measure again. The measured
    values of a run that diverged, the columns after ``step``, are NaN.

    Args:
        declared: the declaration, as ``declaration.read`` returns it.
        runs: the runs of the figure.
        also: as in :func:`run_table`.

    Returns:
        The table, or None if the declaration has no ``measure``.
    """
    if "measure" not in declared:
        return None
    settings = run_table(declared, runs, also)
    dropped = (*_metrics(settings), *COLUMNS_IN_RUN_NAME)
    settings = settings[[c for c in settings if c not in dropped]].drop_duplicates(["panel", "run"])
    parts = []
    for directory in run_directories(runs):
        file = directory.path / f"{declared['measure'].rpartition('.')[2]}.csv"
        if not file.exists():
            write_atomically(file, import_function(declared["measure"])(directory).to_csv(index=False))
        measured = pd.read_csv(file).assign(run=directory.name)
        if directory.status == "diverged":
            measured[measured[_metrics(measured)].select_dtypes("float").columns] = float("nan")
        parts.append(measured)
    return settings.merge(pd.concat(parts, ignore_index=True), on="run")


def run_directories(runs: list[FigureRun]) -> list[RunDirectory]:
    """Return the directories of a figure's runs. A run that is in several panels has one entry."""
    return list({run.directory.name: run.directory for run in runs}.values())


def import_function(dotted: str) -> Callable[..., Any]:
    """Import and return a function by its full name, such as ``wdlab.analysis.plots.pathprox.fig3``."""
    module, _, function = dotted.rpartition(".")
    return getattr(importlib.import_module(module), function)


def _metrics(rows: pd.DataFrame) -> list[str]:
    """Return the columns of a table that are not settings: ``step`` and all columns after it."""
    return list(rows.columns[list(rows).index("step") :])
