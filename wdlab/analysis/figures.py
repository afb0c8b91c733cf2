"""A figure made from its declaration: tables, one picture, verdicts. Called by ``scripts`` and ``notebook``.

A panel of a declaration has ``vary``, ``search`` or ``simulate``. ``vary`` is a list of lines; the panel has a run for
each line and each seed (a line with ``a=1,2`` counts as two lines). ``search`` has trials of each method, and runs of
the setting that is chosen of them; claims are about the latter, see :mod:`wdlab.analysis.declaration`. ``simulate``
names a function that computes rows of the table without training. ``derived`` adds columns to the table, each with a
formula of other columns; a panel may have its own.
``measure`` names a function that measures a checkpoint (a probe); its results for all runs are a second table.
``names`` are the names of groups in sentences about claims.
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

from wdlab.analysis import claims, compute, selection, style, tables
from wdlab.analysis import verdicts as rules
from wdlab.analysis.declaration import SCALES, FigureRun
from wdlab.analysis.panels import Kept
from wdlab.analysis.sentences import sentence
from wdlab.analysis.tables import FigureFiles
from wdlab.records.provenance import code_version

NOTE_CHARACTERS_PER_INCH = 19  # in a line of the caption beneath a picture
UNTRIED = "nothing at this scale"


def draw(declared: Mapping[str, Any], rows: pd.DataFrame, probes: pd.DataFrame | None = None) -> Figure:
    """Draw the picture of a figure, with its caption underneath.

    Args:
        declared: the declaration, as ``declaration.read`` returns it. Its function ``plot`` is called with the tables
            and with the declarations of those panels that have rows.
        rows: the table of the runs.
        probes: the table of the probes; None if the figure has no probes.
    """
    given = (rows,) if probes is None else (rows, probes)
    panels = [panel for panel in declared["at"]["panels"] if (rows["panel"] == panel["panel"]).any()]
    with style.context():
        figure = tables.import_function(declared["plot"])(*given, panels)
        width = int(NOTE_CHARACTERS_PER_INCH * figure.get_figwidth())
        lines = [textwrap.fill(paragraph, width) for paragraph in caption(declared, rows).split("\n")]
        figure.supxlabel("\n".join(lines), fontsize=7, color="0.3")
    return figure


def caption(declared: Mapping[str, Any], rows: pd.DataFrame) -> str:
    """Return the text under a picture: scale, seeds, title, diverged runs, declared captions, paper, scale-downs.

    ``caption`` is declared for all scales; a scale may have another one, which follows it.
    """
    rows = selection.judged(rows)
    counts = sorted(set(rows.groupby("panel")["seed"].nunique()))
    shown = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    over = declared.get("over", "seeds")
    heading = f"{declared['name']} at {declared['scale']} scale, {shown} {over}: {declared['title']}."
    lost = len(selection.diverged(rows))
    missing = f" Runs that diverged: {lost}; no median is drawn where a seed is missing." if lost else ""
    of_scale = f" {declared['at']['caption']}" if "caption" in declared["at"] else ""
    text = f"{heading}{missing} {declared['caption']}{of_scale} {declared['paper']}."
    return f"{text}\nScale-downs: {declared['at']['scale_down']}."


def verdicts(
    declared: Mapping[str, Any],
    rows: pd.DataFrame,
    runs: list[FigureRun],
    probes: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Judge all claims of a figure at its scale.

    Args:
        declared: the declaration, as ``declaration.read`` returns it.
        rows: the table of the runs, about which a claim is by default.
        runs: the runs of the figure.
        probes: the table of the probes, about which a claim with ``of: measured`` is; None if the figure has no probes.

    Returns:
        The judged claims under ``claims``, as ``claims.judge`` returns them, next to title, paper, scale, seeds of each
        panel, numbers of runs by status, devices, hours of compute and commits. A claim that has a p-value also has
        ``holm``: whether it is at most 0.025 after Holm's correction over all claims of the figure at this scale; each
        has a ``sentence``.
    """
    over, scale, judged = declared.get("over", "seeds"), declared["scale"], []
    rows = selection.judged(rows)
    probes = probes if probes is None else selection.judged(probes)
    for claim in declared["claims"]:
        source = probes if claim.get("of") == "measured" else rows
        for panel in claim["panels"]:
            part = source[source["panel"] == panel]
            if len(part) and scale in claim.get("scales", SCALES):
                judged.append(claims.judge(claim, part, scale, over, panel) | {"panel": panel})
    _correct_for_several(judged)
    for claim in judged:
        claim["sentence"] = sentence(claim, over, declared.get("names"))
    directories = tables.run_directories(runs)
    sessions = [s for run in directories for s in run.read("provenance.json").get("sessions", [])]
    codes = [s["code"] for s in sessions] or [code_version()]
    ended = Counter(directory.status for directory in directories)
    return {
        "figure": declared["name"],
        "title": declared["title"],
        "paper": declared["paper"],
        "scale": declared["scale"],
        "scale_down": declared["at"]["scale_down"],
        "tried": " ".join(declared["at"].get("tried", UNTRIED).split()),
        "panels": {
            panel["panel"]: {"title": panel["title"], over: _seeds_of(rows, panel["panel"])}
            for panel in declared["at"]["panels"]
        },
        "runs": dict(ended),
        "devices": sorted({_device(s) for s in sessions}),
        "compute": compute.spent(directories),
        "code": sorted({code.get("commit", "unknown") + _dirty(code) for code in codes}),
        "claims": judged,
    }


def _correct_for_several(judged: list[dict[str, Any]]) -> None:
    """Add ``holm`` to the claims that have a p-value, see :func:`verdicts`."""
    tested = [claim for claim in judged if claim["p_value"] is not None]
    for claim, adjusted in zip(tested, rules.holm([claim["p_value"] for claim in tested]), strict=True):
        claim["holm"] = adjusted <= (1 - rules.CONFIDENCE) / 2


def _seeds_of(rows: pd.DataFrame, panel: str) -> list[int]:
    """Return the sorted seeds of a panel's rows in a table."""
    return sorted(map(int, set(rows.loc[rows["panel"] == panel, "seed"])))


def _device(session: Mapping[str, Any]) -> str:
    """Return device, threads, precision and matmul setting of a session of a run, in a line."""
    return f"{session['device']}, threads: {session['threads']}, {session['precision']}, {session['matmul']}"


def _dirty(code: Mapping[str, str]) -> str:
    """Return a remark to append to the commit if the checkout had uncommitted changes, else ""."""
    return " with uncommitted changes" if code.get("uncommitted") else ""


def verdict_numbers(claim: Mapping[str, Any]) -> str:
    """Return the numbers of a judged claim in a line: difference, interval, number of seeds, and the note if any."""
    parts = [f"n = {claim['n']}"]
    if claim["interval"] is not None:
        low, high = claim["interval"]
        of_logarithms = " of logarithms" * ("difference" in claim)
        parts.insert(0, f"difference{of_logarithms} {claim['mean_difference']:.3g} [{low:.3g}, {high:.3g}]")
    if claim["verdict"] == "reproduced" and not claim.get("holm", True):
        parts.append("not after Holm's correction")
    if "note" in claim:
        parts.append(claim["note"])
    return "; ".join(parts)


def verdict_counts(files: FigureFiles) -> str:
    """Return the number of each verdict in a figure's file: ``2 reproduced, 1 contradicted (1 exploratory)``."""
    judged = json.loads(files.verdicts.read_text())["claims"]
    by_verdict = Counter(claim["verdict"] for claim in judged)
    counts = ", ".join(f"{by_verdict[verdict]} {verdict}" for verdict in rules.VERDICTS if by_verdict[verdict])
    corrected = sum(claim["verdict"] == "reproduced" and not claim.get("holm", True) for claim in judged)
    exploratory = sum(claim["exploratory"] for claim in judged)
    remarks = [f"{corrected} not after Holm's correction"] * (corrected > 0) + [f"{exploratory} exploratory"] * (
        exploratory > 0
    )
    return counts + f" ({', '.join(remarks)})" * bool(remarks)


def claims_by_panel(judged: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the title and the judged claims of each panel that has claims, in the order of the declaration.

    Args:
        judged: the verdicts, as :func:`verdicts` returns them and as they are in a figure's file.
    """
    by_panel = {name: [c for c in judged["claims"] if c["panel"] == name] for name in judged["panels"]}
    return [(judged["panels"][name]["title"], claims) for name, claims in by_panel.items() if claims]


def write(
    declared: Mapping[str, Any], runs: list[FigureRun], results: str | Path, kept: Kept | None = None
) -> tuple[FigureFiles, dict[str, Any]]:
    """Write the tables of a figure; then read these files, and write the picture and the verdicts.

    Args:
        declared: the declaration, as ``declaration.read`` returns it.
        runs: the runs of the figure, which have ended.
        results: the folder under which the files are written.
        kept: the panels whose rows are those of earlier files. ``runs`` are then those of the other panels.

    Returns:
        The paths of the files, and the verdicts as :func:`verdicts` returns them.
    """
    files = FigureFiles.of(declared["name"], declared["scale"], results)
    for path in (files.table, files.picture, files.verdicts):
        path.parent.mkdir(parents=True, exist_ok=True)
    made, also = (kept.anew, kept.columns(runs)) if kept else (declared, ())
    rows, probes = tables.run_table(made, runs, also), tables.probe_table(made, runs, also)
    if kept:
        rows = tables.shortened(declared, kept.joined(declared, kept.earlier, rows, runs))
        probes = None if probes is None else kept.joined(declared, kept.probes, probes, runs)
    rows.to_csv(files.table, index=False, float_format="%.7g")  # float32 has no more
    if probes is not None:
        probes.to_csv(files.measured, index=False, float_format="%.4g")
    rows, probes = tables.read(declared, files)
    judged = verdicts(declared, rows, runs, probes)
    judged = kept.with_earlier_runs(judged, runs) if kept else judged
    files.verdicts.write_text(json.dumps(judged, indent=2) + "\n")
    write_picture(declared, files)
    return files, judged


def write_picture(declared: Mapping[str, Any], files: FigureFiles) -> None:
    """Draw a figure from its table files, and write the picture for the screen (PNG) and for print (PDF)."""
    figure = draw(declared, *tables.read(declared, files))
    with style.context():
        figure.savefig(files.picture, metadata={"Software": None})
        figure.savefig(files.print_picture, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    mpl.pyplot.close(figure)
