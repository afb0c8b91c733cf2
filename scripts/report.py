"""Write ``results/REPORT.md`` and ``results/report.json``: what reproduced and how surely. Called by ``make report``.

The text is that of ``report_template.md``. Every number is filled in.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from wdlab.analysis import declaration, figures, report, verdicts
from wdlab.analysis.tables import FigureFiles
from wdlab.records.identity import PROJECT

RESULTS = PROJECT / "results"
TEMPLATE = PROJECT / "scripts" / "report_template.md"
PAGE, NUMBERS = "REPORT.md", "report.json"
Content = Mapping[str, Any]


def write(results: Path = RESULTS) -> None:
    """Write the report of the figures in ``results`` there, as a page and as JSON."""
    content = report.collect(results)
    (results / NUMBERS).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    (results / PAGE).write_text(page(content, results))
    print(f"report   {results / PAGE}")


def page(content: Content, results: Path = RESULTS) -> str:
    """Return the report in Markdown, with links relative to ``results``.

    Args:
        content: what ``wdlab.analysis.report.collect`` returns.
        results: the folder of the figures' files.
    """
    scales = [of for of in content["scales"] if of["figures"]]
    return Template(TEMPLATE.read_text()).substitute(
        summary=_summary(content["papers"], scales),
        not_made=_not_made(content["papers"]),
        confidence=f"{100 * verdicts.CONFIDENCE:g}",
        chance=f"{100 * report.CHANCE:g}",
        by_chance="\n".join(_by_chance(of) for of in scales),
        papers="\n\n".join(_papers(content["figures"], results)),
        runs=_runs(scales),
        compute=_compute(scales),
        methods=_methods(content["methods"]),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *rows))


def _number(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def _summary(papers: Sequence[Content], scales: Sequence[Content]) -> str:
    """Return the table of the numbers of verdicts by paper and scale."""
    rows = [
        [of["paper"].partition(" (")[0], f"`{of['scale']}`", len(of["made"]), *_counts(of)]
        for of in papers
        if of["made"]
    ]
    rows += [["**all**", f"`{of['scale']}`", of["figures"], *_counts(of)] for of in scales]
    return _table(["paper", "scale", "figures", "claims", *verdicts.VERDICTS, "stand after Holm", "exploratory"], rows)


def _counts(of: Content) -> list[int]:
    """Return the numbers in a line of the summary."""
    return [of["claims"], *of["verdicts"].values(), of["stand_after_holm"], of["exploratory"]]


def _not_made(papers: Sequence[Content]) -> str:
    """Return the figures that were not made, by scale."""
    parts = []
    for scale in declaration.SCALES:
        names = [name for of in papers if of["scale"] == scale for name in of["not_made"]]
        if names:
            named = "all figures" if len(names) == len(declaration.names()) else ", ".join(names)
            parts.append(f"at `{scale}` scale {named}")
    return f"Not made: {'; '.join(parts) or 'none'}."


def _by_chance(of: Content) -> str:
    """Return how many claims of a scale were tested, and how many of them would be reproduced by chance."""
    return (
        f"- `{of['scale']}`: {_number(of['tested'], 'claim')} tested, {of['tested_reproduced']} `reproduced`, "
        f"{of['tested_after_holm']} of these after Holm's correction. If every claim fell just short, "
        f"{of['false_expected']:.2g} would be `reproduced` by chance. Beside them, exact and not tested: "
        f"{_number(of['claims'] - of['tested'], 'claim')}. Changed after runs had been seen: "
        f"{_number(of['changed'], 'claim')}."
    )


def _papers(made: Sequence[Content], results: Path) -> Iterable[str]:
    """Yield for each paper a table of its figures, then the claims of each figure, folded."""
    order = declaration.names()
    made = sorted(made, key=lambda figure: order.index(figure["figure"]))
    for paper, of_paper in itertools.groupby(made, key=lambda figure: figure["paper"]):
        rows, folded = [], []
        for name, of_figure in itertools.groupby(of_paper, key=lambda figure: figure["figure"]):
            scales = list(of_figure)
            for figure in scales:
                begin = [name, figure["title"]] if figure is scales[0] else ["", ""]
                command = f"`make reproduce-{name} SCALE={figure['scale']}`: {figure['time_on_two_cores']}"
                rows.append([*begin, f"`{figure['scale']}`", _verdicts(figure, results), _runs_of(figure), command])
            folded += ["\n".join([f"<details><summary>{name}: claims</summary>", "", *_claims(scales)]), "</details>"]
        yield f"### {paper}"
        yield _table(["", "shows", "scale", "verdicts", "runs", "command, and its time"], rows)
        yield from folded


def _verdicts(figure: Content, results: Path) -> str:
    """Return a figure's numbers of verdicts as a link to its picture."""
    files = FigureFiles.of(figure["figure"], figure["scale"], results)
    return f"[{figures.verdict_counts(files)}]({files.picture.relative_to(results)})"


def _runs_of(figure: Content) -> str:
    """Return the number of a figure's runs, and of those that diverged."""
    if not figure["runs"]:
        return "simulated"
    return f"{figure['runs']:,}" + f", {figure['diverged']} diverged" * (figure["diverged"] > 0)


def _claims(scales: Sequence[Content]) -> list[str]:
    """Return a figure's claims at all scales, each statement once, then the scale-downs and what was tried."""
    by_statement: dict[str, list[str]] = {}
    for figure in scales:
        for claim in figure["claims"]:
            statement = " ".join(claim["statement"].split())
            measured = claim["sentence"].removeprefix(statement).strip()
            by_statement.setdefault(statement, []).append(
                f"  - **{claim['verdict']}** at `{figure['scale']}`, {claim['panel_title']}. {measured}"
                + (f" ({claim['note']})" if "note" in claim else "")
            )
    lines = [line for statement, judged in by_statement.items() for line in (f"- *{statement}*", *judged)]
    for figure in scales:
        lines.append(f"- Scale-downs at `{figure['scale']}`: {figure['scale_down']}.")
        lines.append(f"- Tried before the runs at `{figure['scale']}`: {figure['tried']}.")
    return lines


def _runs(scales: Sequence[Content]) -> str:
    """Return the table of runs and training steps by scale."""
    rows = [
        [
            f"`{of['scale']}`",
            f"{of['runs']:,}",
            of["diverged"],
            f"{of['steps']:,}",
            f"{len(of['tried'])} of {of['figures']}",
        ]
        for of in scales
    ]
    return _table(["scale", "runs", "diverged", "training steps", "figures with other runs tried before"], rows)


def _compute(scales: Sequence[Content]) -> str:
    """Return the table of devices by scale, with the figures that were computed on them and their hours."""
    rows = []
    for of in scales:
        for device, on_it in of["devices"].items():
            named, missing = ", ".join(on_it["figures"]), on_it["not_recorded"]
            if missing == on_it["figures"]:
                hours = ["not recorded"] * 2
            else:
                but = f", without {', '.join(missing)}" if missing else ""
                hours = [f"{on_it[key]:.3g}{but}" for key in ("hours", "core_hours")]
            rows.append([f"`{of['scale']}`", device, named, *hours])
    return _table(["scale", "device", "figures", "hours", "core hours"], rows)


def _methods(methods: Sequence[Content]) -> str:
    """Return the table of methods, their grades of fidelity and the tests that prove them."""
    rows = []
    for of in methods:
        proofs = [
            f"{proof} ({', '.join(f'[{Path(path).stem}](../{path})' for path in paths)})"
            for proof, paths in of["proofs"].items()
        ]
        rows.append([", ".join(f"`{name}`" for name in of["methods"]), of["grade"] or "no paper", "; ".join(proofs)])
    return _table(["methods", "grade", "what its tests compare it with"], rows)


if __name__ == "__main__":
    write()
