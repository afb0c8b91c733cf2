"""Write ``docs/which_decay.md``: which methods may be the best in each task of study1. Called by ``make which-decay``.

The text is that of ``which_decay_template.md``. Every number is filled in.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import pandas as pd

from wdlab.analysis import declaration, ranking, selection
from wdlab.analysis.tables import FigureFiles
from wdlab.records.identity import PROJECT

RESULTS = PROJECT / "results"
TEMPLATE = PROJECT / "scripts" / "which_decay_template.md"
PAGE = PROJECT / "docs" / "which_decay.md"
STUDY = "study1"
SCALES = ("cpu", "quick", "paper")  # in the order of the page
NONE, USUAL = "none", "AdamW"  # the methods that the advice compares others with
FEW = 4  # trials
SPARSE = 0.5  # share of zero weights from which on a method is recommended to those who want zeros


class Task(NamedTuple):
    """A panel of the study that was made at a scale.

    Attributes:
        scale: the scale.
        panel: its declaration.
        rows: its rows in the study's table.
        found: what ``ranking.against_best`` returns.
        curves: the expected score by number of trials, for each method.
    """

    scale: str
    panel: Mapping[str, Any]
    rows: pd.DataFrame
    found: pd.DataFrame
    curves: Mapping[str, pd.Series]

    @property
    def title(self) -> str:
        """The title of the panel."""
        return self.panel["title"]

    @property
    def best(self) -> list[str]:
        """The methods that may be the best, the best mean first."""
        return list(self.found.index[self.found["may_be_best"]])

    def value(self, score: float) -> str:
        """Return a score with as many digits as seeds can tell apart."""
        return f"{100 * score:.1f}" if self.panel.get("percent") else f"{score:.3f}"

    def size(self, difference: float) -> str:
        """Return a difference of two scores with its unit."""
        return f"{self.value(difference)} {'points' if self.panel.get('percent') else 'nats'}"


def tasks(results: Path = RESULTS) -> list[Task]:
    """Return the tasks of the study, of all scales whose files are in ``results``."""
    made = []
    for scale in SCALES:
        declared, files = declaration.read(STUDY, scale), FigureFiles.of(STUDY, scale, results)
        rows = pd.read_csv(files.table) if files.table.exists() else None
        for panel in declared["at"]["panels"] if rows is not None else ():
            found = ranking.against_best(ranking.scores(rows, panel), ranking.metric_of(panel)[1])
            curves = {method: ranking.budget_curve(rows, panel, method) for method in found.index}
            made.append(Task(scale, panel, rows[rows["panel"] == panel["panel"]], found, curves))
    return made


def page(made: Sequence[Task]) -> str:
    """Return the page in Markdown, with links relative to ``docs``."""
    by_scale = {scale: [task for task in made if task.scale == scale] for scale in SCALES}
    parts = [part for of_scale in by_scale.values() for part in _scale(of_scale)]
    first = next(of_scale for of_scale in by_scale.values() if of_scale)
    return Template(TEMPLATE.read_text()).substitute(advice="\n".join(_advice(first)), tasks="\n\n".join(parts)) + "\n"


def _advice(made: Sequence[Task]) -> Iterator[str]:
    """Yield what the tasks of a scale tell someone who has to choose."""
    count, scale = len(made), made[0].scale
    yield f"From the {_number(count, 'task')} at `{scale}` scale:\n"
    behind = [task for task in made if NONE not in task.best]
    lost = "; ".join(f"{task.size(task.found.loc[NONE, 'behind'])} on {task.title}" for task in behind)
    yield f"- **Decay at all?** No decay is worse than the best in {len(behind)} of {count}{f' ({lost})' * bool(lost)}."
    ranked = ranking.ranks({task.title: task.found for task in made})["mean"]
    everywhere = list(ranked.dropna().index)
    times = {method: sum(method in task.best for task in made) for method in everywhere}
    by_count = [(number, [m for m in everywhere if times[m] == number]) for number in sorted({*times.values()})[::-1]]
    named = [f"in {number} of {count} {_list(methods)}" for number, methods in by_count if 2 * number > count]
    yield f"- **Safe choices.** By the number of tasks in which they may be the best: {'; '.join(named)}."
    sizes = "; ".join(f"{task.size(task.found.loc[USUAL, 'behind'])} on {task.title}" for task in made)
    yield (
        f"- **If you use {USUAL} already.** It may be the best in {times[USUAL]} of {count}. Its mean is behind the "
        f"best mean by {sizes}."
    )
    yield f"- **With few trials.** The best scores to expect of {FEW} trials, next to {USUAL} and no decay:"
    for task in made:
        of_few = {method: curve[FEW] for method, curve in task.curves.items()}
        sign = ranking.metric_of(task.panel)[1]
        others = [method for method in of_few if method not in (USUAL, NONE)]
        easiest = sorted(others, key=lambda method: (-sign * of_few[method], method))[:3]
        named = ", ".join(f"*{method}* {task.value(of_few[method])}" for method in easiest)
        yield f"  - {task.title}: {named}; {USUAL} {task.value(of_few[USUAL])}, no decay {task.value(of_few[NONE])}."
    yield "- **If you want zeros.** The methods that may be the best and set most weights to zero, with the share:"
    for task in made:
        zeros = _medians(task, "sparsity/weights")
        sparse = [f"*{method}* ({100 * zeros[method]:.0f} %)" for method in task.best if zeros[method] >= SPARSE]
        yield f"  - {task.title}: {', '.join(sparse) or 'none'}."


def _list(methods: Sequence[str]) -> str:
    """Return names of methods in italics, separated by commas."""
    return ", ".join(f"*{method}*" for method in methods)


def _number(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    return f"{count} {noun}" + "s" * (count != 1)


def _medians(task: Task, column: str) -> pd.Series:
    """Return the median of a column at the end of the judged runs, by method."""
    return selection.judged(selection.last_lines(task.rows)).groupby("method")[column].median()


def _scale(made: Sequence[Task]) -> Iterator[str]:
    """Yield the tables of the tasks of a scale."""
    if made:
        scale = made[0].scale
        declared = declaration.read(STUDY, scale)
        yield f"## The tasks at `{scale}` scale"
        yield f"![score of each method](../results/figures/{scale}/{STUDY}.png)"
        yield f"Scale-downs: {declared['at']['scale_down']}. Tried before: {' '.join(declared['at']['tried'].split())}."
        yield from (_task(task) for task in made)


def _task(task: Task) -> str:
    """Return a heading, the methods that may be the best, and a table of all methods."""
    column, _ = ranking.metric_of(task.panel)
    judged = selection.judged(selection.last_lines(task.rows))
    trials, seeds = task.panel["search"]["trials"], judged["seed"].nunique()
    budgets = list(next(iter(task.curves.values())).index)
    zeros, norm = (_medians(task, name) for name in ("sparsity/weights", "norm/weight_l2"))
    lr = judged.groupby("method")["optimizer.lr"].first()
    head = ["method", "mean [95 %]", "behind the best [simultaneous 95 %]", "may be the best"]
    head += [f"of {budget}" for budget in budgets] + ["zeros", "norm", "learning rate"]
    lines = [head, ["---"] * len(head)]
    for method, row in task.found.iterrows():
        behind = f"{task.value(row['behind'])} [{task.value(row['behind_low'])}, {task.value(row['behind_high'])}]"
        cells = [method, f"{task.value(row['mean'])} [{task.value(row['low'])}, {task.value(row['high'])}]", behind]
        cells += ["yes" if row["may_be_best"] else ""]
        cells += [task.value(task.curves[method][budget]) for budget in budgets]
        cells += [f"{100 * zeros[method]:.0f} %", f"{norm[method]:.3g}", f"{lr[method]:.2g}"]
        lines.append(cells)
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    unit = "percent" if task.panel.get("percent") else "nats"
    return (
        f"### {task.title}\n\n{len(task.best)} of {len(task.found)} methods may be the best: {_list(task.best)}.\n\n"
        f"`{column}` in {unit}; {trials} trials for each method, {seeds} seeds of the chosen setting. *Of k*: the "
        f"score to expect of the best on validation of k trials.\n\n{table}"
    )


def write(results: Path = RESULTS) -> None:
    """Write the page."""
    PAGE.write_text(page(tasks(results)))
    print(f"page     {PAGE}")


if __name__ == "__main__":
    write()
