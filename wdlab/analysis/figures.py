"""A figure: a declaration, the runs it names, one table, one picture, its verdicts. Called by ``scripts/reproduce.py``
and the notebooks."""

import importlib
import json
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from wdlab import runs
from wdlab.analysis import claims, load, style
from wdlab.errors import ConfigError

SCALES = ("quick", "cpu", "paper")
NOTE_CHARACTERS_PER_INCH = 20  # of the caption beneath a picture


@dataclass(frozen=True)
class Job:
    """One run of a figure: the panel it is drawn in, its overrides, and its directory."""

    panel: str
    overrides: tuple[str, ...]
    directory: runs.RunDirectory


def names() -> list[str]:
    """The figures there are."""
    return sorted((p.stem for p in (runs.CONFIGS / "figure").glob("*.yaml")), key=lambda n: (len(n), n))


def declaration(name: str, scale: str) -> dict[str, Any]:
    """``configs/figure/<name>.yaml`` with the chosen scale's part under ``at``.

    Raises:
        ConfigError: for a figure or a scale that does not exist.
    """
    if name not in names():
        raise ConfigError(f"figure {name}: does not exist; available: {', '.join(names())}")
    declared = OmegaConf.to_container(OmegaConf.load(runs.CONFIGS / "figure" / f"{name}.yaml"), resolve=True)
    scales = declared.pop("scales")
    panels = {panel["panel"] for at in scales.values() for panel in at["panels"]}
    for claim in declared["claims"]:
        unknown = set(claim["panels"]) - panels
        if unknown:
            raise ConfigError(f"figure {name}: claim {claim['id']} names panel {unknown.pop()}, which no scale has")
    if scale not in scales:
        raise ConfigError(f"SCALE={scale}: must be one of {', '.join(scales)}")
    return declared | {"name": name, "scale": scale, "at": scales[scale]}


def jobs(declared: Mapping[str, Any], root: str | Path) -> list[Job]:
    """Every run of the figure at its scale: panel x (shared + one of vary) x seed."""
    found = []
    for panel in declared["at"]["panels"]:
        for seed in seeds(declared, panel):
            for vary in panel["vary"]:
                overrides = (*panel["shared"], *vary, f"seed={seed}")
                directory = runs.RunDirectory(root, runs.identity(runs.compose(overrides)))
                found.append(Job(panel["panel"], overrides, directory))
    return found


def seeds(declared: Mapping[str, Any], panel: Mapping[str, Any]) -> list[int]:
    """The seeds of a panel: its own, or those of the scale."""
    return list(panel.get("seeds", declared["at"]["seeds"]))


def table(figure_jobs: list[Job]) -> pd.DataFrame:
    """The tidy table of a figure's runs, with the panel of each in a first column."""
    panels = {job.directory.name: job.panel for job in figure_jobs}
    rows = load(figure_jobs[0].directory.path.parent, panels)
    rows.insert(0, "panel", rows["run"].map(panels))
    return rows


def draw(declared: Mapping[str, Any], rows: pd.DataFrame) -> Figure:
    """The picture, with a caption: its title and paper, the scale and what was scaled down."""
    module, _, function = declared["plot"].rpartition(".")
    drawn = [panel for panel in declared["at"]["panels"] if (rows["panel"] == panel["panel"]).any()]
    with style.context():
        figure = getattr(importlib.import_module(module), function)(rows, drawn)
        counts = sorted(set(rows.groupby("panel")["seed"].nunique()))
        shown = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        heading = f"{declared['name']} at {declared['scale']} scale, {shown} seeds: {declared['title']}."
        note = f"{heading} {declared['caption']} {declared['paper']}. Scale-downs: {declared['at']['scale_down']}"
        width = int(NOTE_CHARACTERS_PER_INCH * figure.get_figwidth())
        figure.supxlabel(textwrap.fill(note, width), fontsize=7, color="0.3")
    return figure


def verdicts(declared: Mapping[str, Any], rows: pd.DataFrame, figure_jobs: list[Job]) -> dict[str, Any]:
    """All claims of the figure judged at its scale, with what a reader needs to weigh them."""
    judged = []
    for claim in declared["claims"]:
        for panel in claim["panels"]:
            part = rows[rows["panel"] == panel]
            if len(part) and declared["scale"] in claim.get("scales", SCALES):
                judged.append(claims.judge({**claim, "panel": panel}, part))
    sessions = [s for job in figure_jobs for s in job.directory.read("provenance.json").get("sessions", [])]
    ended = Counter(job.directory.status for job in figure_jobs)
    return {
        "figure": declared["name"],
        "title": declared["title"],
        "paper": declared["paper"],
        "scale": declared["scale"],
        "scale_down": declared["at"]["scale_down"],
        "panels": {
            panel["panel"]: {"title": panel["title"], "seeds": seeds(declared, panel)}
            for panel in declared["at"]["panels"]
        },
        "runs": dict(ended),
        "devices": sorted({_device(s) for s in sessions}),
        "code": sorted({s["code"].get("commit", "unknown") + _dirty(s["code"]) for s in sessions}),
        "claims": judged,
    }


def _device(session: Mapping[str, Any]) -> str:
    return f"{session['device']}, threads: {session['threads']}, {session['precision']}, {session['matmul']}"


def _dirty(code: Mapping[str, str]) -> str:
    return " with uncommitted changes" if code.get("uncommitted") else ""


def numbers(claim: Mapping[str, Any]) -> str:
    """What a verdict rests on, in a few words: the difference, its interval, the number of pairs, and any note."""
    note = f"; {claim['note']}" if "note" in claim else ""
    if claim["interval"] is None:
        return f"no interval, n={claim['n']}{note}"
    low, high = claim["interval"]
    return f"difference {claim['mean_difference']:.3g} [{low:.3g}, {high:.3g}], n={claim['n']}{note}"


@dataclass(frozen=True)
class Files:
    """Where the committed parts of a figure are."""

    table: Path
    picture: Path
    print_picture: Path
    verdicts: Path

    @classmethod
    def of(cls, name: str, scale: str, results: str | Path = "results") -> "Files":
        """The files of a figure at a scale under ``results``."""
        root = Path(results)
        return cls(
            table=root / "tables" / scale / f"{name}.csv",
            picture=root / "figures" / scale / f"{name}.png",
            print_picture=root / "figures" / scale / f"{name}.pdf",
            verdicts=root / "claims" / scale / f"{name}.json",
        )


def committed(name: str, scale: str, results: str | Path = runs.PROJECT / "results") -> tuple[Figure, pd.DataFrame]:
    """A figure drawn from the table under ``results``, and its verdicts as a table. For notebooks; trains nothing.

    Raises:
        ConfigError: if the figure has not been made at this scale.
    """
    declared = declaration(name, scale)
    files = Files.of(name, scale, results)
    if not files.table.exists():
        raise ConfigError(f"{files.table}: not there yet; run make reproduce-{name} SCALE={scale}")
    judged = json.loads(files.verdicts.read_text())
    shown = [
        {"panel": c["panel"], "claim": " ".join(c["statement"].split()), "verdict": c["verdict"], "numbers": numbers(c)}
        for c in judged["claims"]
    ]
    return draw(declared, pd.read_csv(files.table)), pd.DataFrame(shown)


def write(declared: Mapping[str, Any], figure_jobs: list[Job], results: str | Path) -> tuple[Files, dict[str, Any]]:
    """Make the table, then the picture and the verdicts from the table as it stands on disk."""
    files = Files.of(declared["name"], declared["scale"], results)
    for path in (files.table, files.picture, files.verdicts):
        path.parent.mkdir(parents=True, exist_ok=True)
    table(figure_jobs).to_csv(files.table, index=False)
    rows = pd.read_csv(files.table)
    judged = verdicts(declared, rows, figure_jobs)
    files.verdicts.write_text(json.dumps(judged, indent=2) + "\n")
    figure = draw(declared, rows)
    with style.context():
        figure.savefig(files.picture, metadata={"Software": None})
        figure.savefig(files.print_picture, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    mpl.pyplot.close(figure)
    return files, judged
