"""Write the README's index of figures from their declarations and committed verdicts. Called by ``make index``."""

from collections.abc import Mapping
from typing import Any

from wdlab.analysis import declaration, figures, tables
from wdlab.records.identity import PROJECT

README = PROJECT / "README.md"
BEGIN, END = "<!-- figures: written by make index -->\n", "<!-- end of figures -->\n"
HEAD = "| | paper | shows | {scales} | command, and its time on two cores |"
NOT_MADE = "not made yet"
EARLIER = "(of runs that were declared earlier)"


def table() -> str:
    """Return the index in Markdown: each figure's paper, title, verdicts at each scale, command and times.

    A scale at which no figure was made has no column; a sentence below the table names it.
    """
    declared = {
        name: {scale: declaration.read(name, scale) for scale in declaration.SCALES} for name in declaration.names()
    }
    made = {name: {scale: _verdicts(at) for scale, at in scales.items()} for name, scales in declared.items()}
    shown = [scale for scale in declaration.SCALES if any(of[scale] != NOT_MADE for of in made.values())]
    lines = [
        HEAD.format(scales=" | ".join(f"`{scale}`" for scale in shown)),
        "| --- " * (4 + len(shown)) + "|",
    ]
    for name, scales in declared.items():
        first = scales["quick"]
        times = ", ".join(f"`{scale}` {at['at']['time']}" for scale, at in scales.items())
        paper, verdicts = first["paper"].split(",")[0], " | ".join(made[name][scale] for scale in shown)
        lines.append(f"| {name} | {paper} | {first['title']} | {verdicts} | `make reproduce-{name}`: {times} |")
    missing = [f"`{scale}`" for scale in declaration.SCALES if scale not in shown]
    if missing:
        lines += ["", f"No figure has been made at {' or '.join(missing)} scale yet."]
    return "\n".join(lines) + "\n"


def _verdicts(declared: Mapping[str, Any]) -> str:
    """Return a figure's verdicts in Markdown, as a link to its picture; ``NOT_MADE`` if there are none.

    Results of other runs than those that are declared now are marked with ``EARLIER``.
    """
    files = tables.FigureFiles.of(declared["name"], declared["scale"], PROJECT / "results")
    if not files.verdicts.exists():
        return NOT_MADE
    link = f"[{figures.verdict_counts(files)}]({files.picture.relative_to(PROJECT)})"
    return link if tables.holds_the_declared_runs(declared, files) else f"{link} {EARLIER}"


def with_new_index(readme: str) -> str:
    """Return the text of the README with a new index in place of the one in ``readme``."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(with_new_index(README.read_text()))
