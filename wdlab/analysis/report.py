"""The content of the report, from the committed files: what reproduced, at which scale and how surely.

Called by ``scripts/report.py``, which writes it as a page. Nothing is trained or drawn. The order of the files, and of
the claims in a file, does not matter.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from wdlab.analysis import declaration, figures, selection, verdicts
from wdlab.analysis.tables import FigureFiles
from wdlab.records.identity import PROJECT

CHANCE = (1 - verdicts.CONFIDENCE) / 2  # of a false `reproduced`, at most: where the truth is just short of what counts
OF_A_CLAIM = (
    *("id", "panel", "statement", "kind", "difference", "smallest_difference", "n", "a_mean", "b_mean"),
    *("mean_difference", "interval", "verdict", "holm", "exploratory", "note", "sentence"),
)
METHOD = re.compile(r"^\| (`.*?) \|.*\| (.*?) ?\|$", re.MULTILINE)  # the first and the last cell of a row

# What the tests in a file prove about the methods that they name.
PROOFS = {
    "tests/regularizers/test_golden.py": "the authors' released steps",
    "tests/test_reference.py": "a naive loop of the published algorithm",
    "tests/regularizers/test_constrained.py": "closed forms and limits",
    "tests/regularizers/test_huber.py": "closed forms and limits",
    "tests/regularizers/test_in_loss.py": "closed forms and limits",
    "tests/regularizers/test_magnitude_pruning.py": "closed forms and limits",
    "tests/regularizers/test_over_time.py": "closed forms and limits",
    "tests/regularizers/test_pathprox.py": "closed forms and limits",
    "tests/regularizers/test_pnorm.py": "closed forms and limits",
    "tests/optimizers/test_drop_in.py": "closed forms and limits",
}


def collect(results: Path) -> dict[str, Any]:
    """Return the content of the report.

    Args:
        results: the folder of the figures' files.

    Returns:
        ``papers``: for each paper and scale the figures that were made, those that were not, and the numbers of
        verdicts; ``scales``: the same for all papers together, with numbers of runs; ``figures``: every figure that was
        made at a scale, with its claims; ``methods``: grades of fidelity, and the tests that prove them.
    """
    papers, scales, made = {}, [], []
    for scale in declaration.SCALES:
        trained = {}
        for name in declaration.names():
            declared, files = declaration.read(name, scale), FigureFiles.of(name, scale, results)
            of_paper = papers.setdefault((declared["paper"], scale), {"made": [], "not_made": []})
            of_paper["made" if files.verdicts.exists() else "not_made"].append(name)
            if files.verdicts.exists():
                runs = _runs(declared, files)
                trained |= runs
                made.append(_figure(declared, json.loads(files.verdicts.read_text()), runs))
        scales.append({"scale": scale} | _together([figure for figure in made if figure["scale"] == scale], trained))
    counted = [
        {"paper": paper, "scale": scale} | names | _count(_claims(made, paper=paper, scale=scale))
        for (paper, scale), names in papers.items()
    ]
    papers_in_order = [paper for paper, _ in papers]
    return {
        "papers": sorted(counted, key=lambda of: papers_in_order.index(of["paper"])),
        "scales": scales,
        "figures": made,
        "methods": _methods(),
    }


def _figure(declared: Mapping[str, Any], judged: Mapping[str, Any], runs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the report contains of a figure at a scale, with the claims in the order of their declaration."""
    ids = [claim["id"] for claim in declared["claims"]]
    panels = [panel["panel"] for panel in declared["at"]["panels"]]
    claims = []
    for claim in judged["claims"]:
        kept = {key: claim[key] for key in OF_A_CLAIM if key in claim}
        kept["changed"] = not {judged["scale"], claim["panel"]}.isdisjoint(claim.get("changed", {}))
        claims.append(kept | {"panel_title": judged["panels"][claim["panel"]]["title"]})
    return {
        **{key: judged[key] for key in ("figure", "title", "paper", "scale", "scale_down", "tried")},
        "time_on_two_cores": declared["at"]["time"],
        "runs": len(runs),
        "diverged": sum(run["diverged"] for run in runs.values()),
        "devices": sorted({device.partition(",")[0] for device in judged["devices"]}),
        "compute": judged.get("compute", {}),
        "claims": sorted(claims, key=lambda claim: (_place(ids, claim["id"]), _place(panels, claim["panel"]))),
    }


def _place(order: Sequence[str], name: str) -> tuple[int, str]:
    """Return a key that sorts names as in ``order``, and names that are not in it after them."""
    return [*order, name].index(name), name


def _runs(declared: Mapping[str, Any], files: FigureFiles) -> dict[str, dict[str, Any]]:
    """Return the last logged ``step`` of each trained run in a figure's table, and whether the run ``diverged``."""
    rows = pd.read_csv(files.table, usecols=lambda column: column in ("panel", "run", "step", "train/loss"))
    simulated = [panel["panel"] for panel in declared["at"]["panels"] if "simulate" in panel]
    trained = rows[~rows["panel"].isin(simulated)]
    lost, last = selection.diverged(trained), selection.last_lines(trained)
    return {
        run: {"step": int(step), "diverged": run in lost} for run, step in zip(last["run"], last["step"], strict=True)
    }


def _claims(made: Sequence[Mapping[str, Any]], **where: str) -> list[dict[str, Any]]:
    """Return the claims of those figures that have the values ``where``."""
    chosen = [figure for figure in made if all(figure[key] == value for key, value in where.items())]
    return [claim for figure in chosen for claim in figure["claims"]]


def _count(claims: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the number of claims and of each verdict, and how many of the claims deserve less trust.

    A claim that is judged in several panels counts in each of them. ``tested`` are the claims with an interval over
    seeds: of these a share of at most ``CHANCE`` is expected to be ``reproduced`` by chance.
    """
    by_verdict = Counter(claim["verdict"] for claim in claims)
    tested = [claim for claim in claims if "holm" in claim]
    return {
        "claims": len(claims),
        "verdicts": {verdict: by_verdict[verdict] for verdict in verdicts.VERDICTS},
        "stand_after_holm": sum(claim["verdict"] == "reproduced" and claim.get("holm", True) for claim in claims),
        "exploratory": sum(claim["exploratory"] for claim in claims),
        "changed": sum(claim["changed"] for claim in claims),
        "tested": len(tested),
        "tested_reproduced": sum(claim["verdict"] == "reproduced" for claim in tested),
        "tested_after_holm": sum(claim["verdict"] == "reproduced" and claim["holm"] for claim in tested),
        "false_expected": round(len(tested) * CHANCE, 9),
    }


def _together(made: Sequence[Mapping[str, Any]], trained: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the numbers of all figures of a scale together; a run that several figures share counts once."""
    return {
        "figures": len(made),
        **_count(_claims(made)),
        "runs": len(trained),
        "diverged": sum(run["diverged"] for run in trained.values()),
        "steps": sum(run["step"] for run in trained.values()),
        "tried": [figure["figure"] for figure in made if figure["tried"] != figures.UNTRIED],
        "devices": _devices(made),
    }


def _devices(made: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the figures that were computed on each device, those without a record of the time, and the hours."""
    found = {}
    for device in sorted({device for figure in made for device in figure["devices"]}):
        on_it = [figure for figure in made if device in figure["devices"]]
        spent = [figure["compute"].get(device, {}) for figure in on_it]
        found[device] = {
            "figures": [figure["figure"] for figure in on_it],
            "not_recorded": [figure["figure"] for figure in on_it if not figure["compute"]],
            "hours": sum(of.get("hours", 0) for of in spent),
            "core_hours": sum(of.get("core_hours", 0) for of in spent),
        }
    return found


def _methods() -> list[dict[str, Any]]:
    """Return the methods in ``docs/methods.md`` with their grades, and what the tests that name a method prove."""
    texts = {path: (PROJECT / path).read_text() for path in PROOFS}
    methods = []
    table = (PROJECT / "docs" / "methods.md").read_text().partition("\n## All methods\n")[2].partition("\n## ")[0]
    for cell, grade in METHOD.findall(table):
        names = re.findall(r"`(\w+)`", cell)
        named = re.compile(rf"\b({'|'.join(names)})\b")
        proofs = {}
        for path, proof in PROOFS.items():
            if named.search(texts[path]):
                proofs.setdefault(proof, []).append(path)
        methods.append({"methods": names, "grade": grade, "proofs": proofs})
    return methods
