"""A figure: a declaration, the runs it names, its tables, one picture, its verdicts. Called by ``scripts/reproduce.py``
and the notebooks.

A panel of a declaration has either runs, one for each seed and each line of ``vary`` (``a=1,2`` in a line stands for
two lines), or ``simulate``, which makes rows of the table without training. Where the declaration has changed since its
results were committed, ``committed_with`` names the overrides that those runs had in addition. ``derived`` adds columns
to the table, formulas of others. ``measure`` makes a second table of what is measured on each finished run's
checkpoint.
"""

import importlib
import itertools
import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from wdlab import runs
from wdlab.analysis import claims, load, style
from wdlab.errors import ConfigError

SCALES = ("quick", "cpu", "paper")
IN_A_RUNS_NAME = ("dataset", "model", "optimizer")  # and so not repeated in every row of what was measured on it
NOTE_CHARACTERS_PER_INCH = 19  # of the caption beneath a picture


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


def jobs(declared: Mapping[str, Any], root: str | Path, committed: bool = False) -> list[Job]:
    """Every run of the figure at its scale: panel x seed x (shared + one of vary).

    Args:
        declared: by ``declaration``.
        root: the folder of the runs.
        committed: the runs of the committed table, not those that would be made now.
    """
    found = []
    for panel in declared["at"]["panels"]:
        lines = [line for vary in panel.get("vary", ()) for line in _lines(vary)]
        shared = (*panel.get("shared", ()), *(panel.get("committed_with", ()) if committed else ()))
        configs = [runs.compose((*shared, *line)) for line in lines]  # composing takes all the time
        for seed in seeds(declared, panel) if lines else ():
            for line, config in zip(lines, configs, strict=True):
                config["seed"] = seed
                directory = runs.RunDirectory(root, runs.identity(config))
                found.append(Job(panel["panel"], (*shared, *line, f"seed={seed}"), directory))
    return found


def _lines(vary: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """What a line of ``vary`` stands for: every combination of its values, written as for Hydra's multirun."""
    choices = []
    for override in OverridesParser.create().parse_overrides(list(vary)):
        key = override.get_key_element()
        values = override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_string()]
        choices.append([f"{key}={value}" for value in values])
    return itertools.product(*choices)


def seeds(declared: Mapping[str, Any], panel: Mapping[str, Any]) -> list[int]:
    """The seeds of a panel: its own, or those of the scale."""
    return list(panel.get("seeds", declared["at"]["seeds"]))


def table(declared: Mapping[str, Any], figure_jobs: list[Job]) -> pd.DataFrame:
    """The tidy table of a figure's runs and simulations, with the panel of each in a first column."""
    parts = []
    if figure_jobs:
        panels = pd.DataFrame([{"panel": job.panel, "run": job.directory.name} for job in figure_jobs])
        rows = load(figure_jobs[0].directory.path.parent, panels["run"].unique())
        parts.append(panels.merge(rows, on="run", how="left"))
    for panel in declared["at"]["panels"]:
        if "simulate" in panel:
            settings = dict(panel["simulate"])
            rows = _named(settings.pop("function"))(**settings)
            rows.insert(0, "panel", panel["panel"])
            parts.append(rows)
    joined = pd.concat(parts, ignore_index=True)
    for column, formula in declared.get("derived", {}).items():
        joined[column] = joined.eval(formula)
    return joined


def measured(declared: Mapping[str, Any], figure_jobs: list[Job]) -> pd.DataFrame | None:
    """What the declaration's ``measure`` finds on the runs, their panels and settings in front; None without one.

    A run is measured once; what was found stays in its directory, also when the code that measures has changed: delete
    it to measure anew. Of a run that diverged nothing is known: nan.
    """
    if "measure" not in declared:
        return None
    settings = table(declared, figure_jobs)
    dropped = (*_metrics(settings), *IN_A_RUNS_NAME)
    settings = settings[[c for c in settings if c not in dropped]].drop_duplicates(["panel", "run"])
    parts = []
    for directory in _directories(figure_jobs):
        kept = directory.path / f"{declared['measure'].rpartition('.')[2]}.csv"
        if not kept.exists():
            runs.write_atomically(kept, _named(declared["measure"])(directory).to_csv(index=False))
        found = pd.read_csv(kept).assign(run=directory.name)
        if directory.status == "diverged":
            found[found.select_dtypes("float").columns] = float("nan")
        parts.append(found)
    return settings.merge(pd.concat(parts, ignore_index=True), on="run")


def _directories(figure_jobs: list[Job]) -> list[runs.RunDirectory]:
    """Those of the figure's runs, each once: panels may share one."""
    return list({job.directory.name: job.directory for job in figure_jobs}.values())


def _metrics(rows: pd.DataFrame) -> list[str]:
    """The columns from the step on."""
    return list(rows.columns[list(rows).index("step") :])


def _named(dotted: str) -> Callable[..., Any]:
    module, _, function = dotted.rpartition(".")
    return getattr(importlib.import_module(module), function)


def draw(declared: Mapping[str, Any], rows: pd.DataFrame, of_checkpoints: pd.DataFrame | None = None) -> Figure:
    """The picture, with a caption: its title and paper, the scale and what was scaled down.

    The plot function is called with the table and the panels, and with the table of measurements if there is one.
    """
    tables = (rows,) if of_checkpoints is None else (rows, of_checkpoints)
    drawn = [panel for panel in declared["at"]["panels"] if (rows["panel"] == panel["panel"]).any()]
    with style.context():
        figure = _named(declared["plot"])(*tables, drawn)
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
    figure_jobs: list[Job],
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
    sessions = [s for run in _directories(figure_jobs) for s in run.read("provenance.json").get("sessions", [])]
    codes = [s["code"] for s in sessions] or [runs.code_version()]
    ended = Counter(directory.status for directory in _directories(figure_jobs))
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


def counted(files: Files) -> str:
    """How a figure's claims fell at a scale: ``2 reproduced, 1 contradicted (exploratory)``."""
    judged = json.loads(files.verdicts.read_text())["claims"]
    found = Counter(claim["verdict"] for claim in judged)
    counts = ", ".join(f"{found[verdict]} {verdict}" for verdict in claims.VERDICTS if found[verdict])
    return counts + " (exploratory)" * any(claim["exploratory"] for claim in judged)


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
    return draw(declared, *tables(declared, files)), pd.DataFrame(shown)


def tables(declared: Mapping[str, Any], files: Files) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The table of a figure and its measurements, if it has some, as they stand on disk."""
    return pd.read_csv(files.table), pd.read_csv(files.measured) if "measure" in declared else None


def write(declared: Mapping[str, Any], figure_jobs: list[Job], results: str | Path) -> tuple[Files, dict[str, Any]]:
    """Make the table, then the picture and the verdicts from the table as it stands on disk."""
    files = Files.of(declared["name"], declared["scale"], results)
    for path in (files.table, files.picture, files.verdicts):
        path.parent.mkdir(parents=True, exist_ok=True)
    table(declared, figure_jobs).to_csv(files.table, index=False)
    found = measured(declared, figure_jobs)
    if found is not None:
        found.to_csv(files.measured, index=False, float_format="%.4g")
    rows, found = tables(declared, files)
    judged = verdicts(declared, rows, figure_jobs, found)
    files.verdicts.write_text(json.dumps(judged, indent=2) + "\n")
    figure = draw(declared, rows, found)
    with style.context():
        figure.savefig(files.picture, metadata={"Software": None})
        figure.savefig(files.print_picture, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    mpl.pyplot.close(figure)
    return files, judged
