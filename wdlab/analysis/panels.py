"""Some panels of a figure made anew, next to the rows that the other panels have in its earlier files.

Called by ``figures`` and ``scripts/reproduce.py``. The name of a run contains a hash of its settings, so that a table
shows whether its runs are those that are declared now. It does not show whether the code has changed since, or a
formula of ``derived``, or which ``lines`` are kept.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from wdlab.analysis import compute, tables
from wdlab.analysis.declaration import FigureRun, figure_runs
from wdlab.analysis.load import settings
from wdlab.analysis.selection import diverged
from wdlab.analysis.tables import FigureFiles
from wdlab.errors import ConfigError
from wdlab.records.identity import compose_config


@dataclass(frozen=True)
class Kept:
    """The panels of a figure that stay as they are in its earlier files.

    Attributes:
        names: the names of these panels.
        anew: the declaration of the other panels, which are made anew, with all metrics.
        earlier: the table of the runs of all panels in the earlier files.
        probes: the table of the probes in the earlier files; None if there are no probes.
        judged: the verdicts in the earlier files.
        settings: the settings of one of the runs that stay, by column; {} if none stays.
    """

    names: Sequence[str]
    anew: Mapping[str, Any]
    earlier: pd.DataFrame
    probes: pd.DataFrame | None
    judged: Mapping[str, Any]
    settings: Mapping[str, Any]

    def columns(self, runs: Sequence[FigureRun]) -> list[str]:
        """Return the columns of settings in the table of all panels, if no others differ between the new runs.

        A table has no column of a setting that is the same in all of its runs. So these are the columns of the earlier
        table, and of the settings that are the same in all new runs, but not in those that stay.

        Args:
            runs: the runs of the panels that are made anew.
        """
        new = _settings(runs[0]) if runs and self.settings else self.settings
        differing = (column for column in {**self.settings, **new} if self.settings.get(column) != new.get(column))
        return list(dict.fromkeys([*_split(self.earlier)[0], *differing]))

    def joined(
        self, declared: Mapping[str, Any], earlier: pd.DataFrame, new: pd.DataFrame, runs: Sequence[FigureRun]
    ) -> pd.DataFrame:
        """Return the rows of all panels, in the order of the declaration.

        Args:
            declared: the declaration with all panels.
            earlier: a table in the earlier files.
            new: the same table of the panels that are made anew, with :meth:`columns`.
            runs: the runs of these panels.
        """
        (before, after), (new_before, new_after) = _split(earlier), _split(new)
        dropped = {*self.earlier, *before, *tables.COLUMNS_IN_RUN_NAME}
        added = [c for c in dict.fromkeys([*new_before, *self.columns(runs)]) if c not in dropped]
        stay = earlier[earlier["panel"].isin(self.names)]
        shared = {column: pd.Series(self.settings.get(column), stay.index) for column in added}
        stay = stay.assign(**{column: values.where(stay["run"].notna()) for column, values in shared.items()})
        both = pd.concat([stay, new], ignore_index=True).infer_objects()  # a null makes a column one
        order = both["panel"].map([panel["panel"] for panel in declared["at"]["panels"]].index)
        columns = dict.fromkeys([*before, *added, *after, *new_after])
        return both.reindex(columns=list(columns)).loc[order.sort_values(kind="stable").index]

    def with_earlier_runs(self, judged: Mapping[str, Any], runs: Sequence[FigureRun]) -> dict[str, Any]:
        """Return verdicts with the numbers of runs, devices, hours and commits of all panels.

        Devices and commits are those of the earlier verdicts and of the runs. The hours are those of the earlier
        verdicts and of the runs that the earlier table does not have, so they include those of runs that were replaced.

        Args:
            judged: the verdicts, as ``figures.verdicts`` returns them for the runs.
            runs: the runs of the panels that are made anew.
        """
        stay = self.earlier[self.earlier["panel"].isin(self.names)].dropna(subset=["run"])
        lost, directories = diverged(stay), tables.run_directories(runs)
        ended = {run: "diverged" if run in lost else "done" for run in stay["run"].unique()}
        ended |= {directory.name: directory.status for directory in directories}
        both = {key: sorted({*self.judged[key], *judged[key]}) for key in ("devices", "code")}
        of_all = dict(judged) | {"runs": dict(Counter(ended.values()))} | both
        if "compute" not in self.judged:  # the hours were not recorded
            return {key: value for key, value in of_all.items() if key != "compute"}
        added = [directory for directory in directories if directory.name not in set(self.earlier["run"])]
        hours = dict(self.judged["compute"])
        for device, spent in compute.spent(added).items():
            hours[device] = {key: round(hours.get(device, {}).get(key, 0) + value, 4) for key, value in spent.items()}
        return of_all | {"compute": hours}


def keep(declared: Mapping[str, Any], anew: Sequence[str], files: FigureFiles) -> Kept | None:
    """Return what stays of a figure's earlier files if only some of its panels are made anew; None if nothing stays.

    Args:
        declared: the declaration, as ``declaration.read`` returns it.
        anew: the names of the panels to make anew.
        files: the earlier files.

    Raises:
        ConfigError: if the figure has no such panel, has no earlier files, or if these do not have the runs or the
            columns of the other panels that are declared now.
    """
    where, panels = f"PANELS={','.join(anew)}", [panel["panel"] for panel in declared["at"]["panels"]]
    if unknown := [name for name in anew if name not in panels]:
        raise ConfigError(f"PANELS={unknown[0]}: must be one of {', '.join(panels)}")
    others = [name for name in panels if name not in anew]
    if not others:
        return None
    needed = (files.table, files.verdicts, *([files.measured] if "measure" in declared else []))
    if missing := [path for path in needed if not path.exists()]:
        raise ConfigError(f"{where}: {missing[0]}, which the other panels are taken from, does not exist")
    earlier, probes = tables.read(declared, files)
    if lost := {*declared.get("metrics", declared.get("derived", ()))} - set(earlier):
        raise ConfigError(f"{where}: {files.table} has no column {min(lost)}, which is declared for the other panels")
    shared: Mapping[str, Any] = {}
    for name in others:
        rows = earlier[earlier["panel"] == name]
        runs = figure_runs(_only(declared, [name]), "", tables.ends_in(rows))
        if rows.empty or (runs and set(rows["run"]) != {run.directory.name for run in runs}):
            raise ConfigError(f"{where}: {files.table} has other runs than are declared for {name}; add it to PANELS")
        shared = shared or (_settings(runs[0]) if runs else {})
    anew_declared = {key: value for key, value in _only(declared, anew).items() if key != "metrics"}
    return Kept(others, anew_declared, earlier, probes, json.loads(files.verdicts.read_text()), shared)


def _only(declared: Mapping[str, Any], panels: Sequence[str]) -> dict[str, Any]:
    """Return a declaration with only some of its panels."""
    kept = [panel for panel in declared["at"]["panels"] if panel["panel"] in panels]
    return dict(declared) | {"at": declared["at"] | {"panels": kept}}


def _settings(run: FigureRun) -> dict[str, Any]:
    """Return the settings of a run by column."""
    return settings(OmegaConf.to_container(compose_config(run.overrides), resolve=True))


def _split(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return the columns of a table before ``step``, which describe runs, and the others."""
    at = list(table).index("step")
    return list(table)[:at], list(table)[at:]
