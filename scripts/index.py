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
    """Return the index in Markdown: each figure's paper, title, verdicts at each scale, command and times."""
    lines = [
        HEAD.format(scales=" | ".join(f"`{scale}`" for scale in declaration.SCALES)),
        "| --- " * (4 + len(declaration.SCALES)) + "|",
    ]
    for name in declaration.names():
        declared = {scale: declaration.read(name, scale) for scale in declaration.SCALES}
        first = declared["quick"]
        made = [_verdicts(at) for at in declared.values()]
        times = ", ".join(f"`{scale}` {declared[scale]['at']['time']}" for scale in declaration.SCALES)
        paper = first["paper"].split(",")[0]
        lines.append(f"| {name} | {paper} | {first['title']} | {' | '.join(made)} | `make reproduce-{name}`: {times} |")
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
