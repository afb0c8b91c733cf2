"""A figure: a declaration, the runs it names, its tables, one picture, its verdicts. Called by ``scripts/reproduce.py``
and the notebooks.

A panel of a declaration has either runs, one for each seed and each line of ``vary`` (``a=1,2`` in a line stands for
two lines), or ``simulate``, which makes rows of the table without training. Where the declaration has changed since its
results were committed, ``committed_with`` names the overrides that those runs had in addition. ``derived`` adds columns
to the table, formulas of others. ``measure`` makes a second table of what is measured on each finished run's
checkpoint.
"""

import json
import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from wdlab.analysis import claims, style
from wdlab.analysis.declaration import SCALES, FigureRun, read_declaration
from wdlab.analysis.tables import Files, directories, named, of_checkpoints, of_runs, read_tables
from wdlab.errors import ConfigError
from wdlab.records.identity import PROJECT
from wdlab.records.provenance import code_version

NOTE_CHARACTERS_PER_INCH = 19  # of the caption beneath a picture


def draw(declared: Mapping[str, Any], rows: pd.DataFrame, of_checkpoints: pd.DataFrame | None = None) -> Figure:
    """The picture, with a caption: its title and paper, the scale and what was scaled down.

    The plot function is called with the table and the panels, and with the table of measurements if there is one.
    """
    tables = (rows,) if of_checkpoints is None else (rows, of_checkpoints)
    drawn = [panel for panel in declared["at"]["panels"] if (rows["panel"] == panel["panel"]).any()]
    with style.context():
        figure = named(declared["plot"])(*tables, drawn)
        counts = sorted(set(rows.groupby("panel")["seed"].nunique()))
        shown = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        over = declared.get("over", "seeds")
        heading = f"{declared['name']} at {declared['scale']} scale, {shown} {over}: {declared['title']}."
        lost = _diverged(rows)
        missing = f" Runs that diverged: {lost}; no mean is drawn where a seed is missing." if lost else ""
        note = (
            f"{heading}{missing} {declared['caption']} {declared['paper']}. Scale-downs: {declared['at']['scale_down']}"
        )
        width = int(NOTE_CHARACTERS_PER_INCH * figure.get_figwidth())
        figure.supxlabel(textwrap.fill(note, width), fontsize=7, color="0.3")
    return figure


def _diverged(rows: pd.DataFrame) -> int:
    """How many runs of a table have no train loss at their end."""
    if "train/loss" not in rows:
        return 0
    return int(claims.last_lines(rows.dropna(subset=["run"]))["train/loss"].isna().sum())


def verdicts(
    declared: Mapping[str, Any],
    rows: pd.DataFrame,
    figure_jobs: list[FigureRun],
    of_checkpoints: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """All claims of the figure judged at its scale, with what a reader needs to weigh them.

    A claim is about the table, or with ``of: measured`` about the measurements. Only one over seeds can be exploratory.
    """
    over, judged = declared.get("over", "seeds"), []
    for claim in declared["claims"]:
        source = of_checkpoints if claim.get("of") == "measured" else rows
        for panel in claim["panels"]:
            part = source[source["panel"] == panel]
            if len(part) and declared["scale"] in claim.get("scales", SCALES):
                outcome = claims.judge({**claim, "panel": panel}, part)
                judged.append(outcome | {"exploratory": outcome["exploratory"] and over == "seeds"})
    sessions = [s for run in directories(figure_jobs) for s in run.read("provenance.json").get("sessions", [])]
    codes = [s["code"] for s in sessions] or [code_version()]
    ended = Counter(directory.status for directory in directories(figure_jobs))
    return {
        "figure": declared["name"],
        "title": declared["title"],
        "paper": declared["paper"],
        "scale": declared["scale"],
        "scale_down": declared["at"]["scale_down"],
        "panels": {
            panel["panel"]: {"title": panel["title"], over: _seeds_of(rows, panel["panel"])}
            for panel in declared["at"]["panels"]
        },
        "runs": dict(ended),
        "devices": sorted({_device(s) for s in sessions}),
        "code": sorted({code.get("commit", "unknown") + _dirty(code) for code in codes}),
        "claims": judged,
    }


def _seeds_of(rows: pd.DataFrame, panel: str) -> list[int]:
    return sorted(map(int, set(rows.loc[rows["panel"] == panel, "seed"])))


def _device(session: Mapping[str, Any]) -> str:
    return f"{session['device']}, threads: {session['threads']}, {session['precision']}, {session['matmul']}"


def _dirty(code: Mapping[str, str]) -> str:
    return " with uncommitted changes" if code.get("uncommitted") else ""


def numbers(claim: Mapping[str, Any]) -> str:
    """What a verdict rests on, in a few words: the difference, its interval, the number of pairs, and any note."""
    rest = (
        f"n={claim['n']}" + ", exploratory" * claim["exploratory"] + (f"; {claim['note']}" if "note" in claim else "")
    )
    if claim["interval"] is None:
        return f"no interval, {rest}"
    low, high = claim["interval"]
    return f"difference {claim['mean_difference']:.3g} [{low:.3g}, {high:.3g}], {rest}"


def counted(files: Files) -> str:
    """How a figure's claims fell at a scale: ``2 reproduced, 1 contradicted (exploratory)``."""
    judged = json.loads(files.verdicts.read_text())["claims"]
    found = Counter(claim["verdict"] for claim in judged)
    counts = ", ".join(f"{found[verdict]} {verdict}" for verdict in claims.VERDICTS if found[verdict])
    return counts + " (exploratory)" * any(claim["exploratory"] for claim in judged)


def committed(name: str, scale: str, results: str | Path = PROJECT / "results") -> tuple[Figure, pd.DataFrame]:
    """A figure drawn from the table under ``results``, and its verdicts as a table. For notebooks; trains nothing.

    Raises:
        ConfigError: if the figure has not been made at this scale.
    """
    declared = read_declaration(name, scale)
    files = Files.of(name, scale, results)
    if not files.table.exists():
        raise ConfigError(f"{files.table}: not there yet; run make reproduce-{name} SCALE={scale}")
    judged = json.loads(files.verdicts.read_text())
    shown = [
        {"panel": c["panel"], "claim": " ".join(c["statement"].split()), "verdict": c["verdict"], "numbers": numbers(c)}
        for c in judged["claims"]
    ]
    return draw(declared, *read_tables(declared, files)), pd.DataFrame(shown)


def write(
    declared: Mapping[str, Any], figure_jobs: list[FigureRun], results: str | Path
) -> tuple[Files, dict[str, Any]]:
    """Make the table, then the picture and the verdicts from the table as it stands on disk."""
    files = Files.of(declared["name"], declared["scale"], results)
    for path in (files.table, files.picture, files.verdicts):
        path.parent.mkdir(parents=True, exist_ok=True)
    of_runs(declared, figure_jobs).to_csv(files.table, index=False)
    found = of_checkpoints(declared, figure_jobs)
    if found is not None:
        found.to_csv(files.measured, index=False, float_format="%.4g")
    rows, found = read_tables(declared, files)
    judged = verdicts(declared, rows, figure_jobs, found)
    files.verdicts.write_text(json.dumps(judged, indent=2) + "\n")
    figure = draw(declared, rows, found)
    with style.context():
        figure.savefig(files.picture, metadata={"Software": None})
        figure.savefig(files.print_picture, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    mpl.pyplot.close(figure)
    return files, judged
