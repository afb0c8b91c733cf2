"""Write ``docs/which_decay.md``: which methods may be the best in each task of study1. Called by ``make which-decay``.

The text is that of ``which_decay_template.md``. Every number is filled in.
"""

import json
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
SPARSE = 0.5  # share of zero weights from which on a method is named to those who want zeros
AT_EDGE = "†"  # beside a setting beyond which no trial lies
SEARCHED = ("optimizer.lr", "regularizer.strength", "regularizer.warm_start")


class Task(NamedTuple):
    """A panel of the study that was made at a scale.

    Attributes:
        scale: the scale.
        panel: its declaration.
        rows: its rows in the study's table.
        found: what ``ranking.against_best`` returns.
        curves: the expected score by number of trials, for each method.
        smallest: the smallest difference that counts in the claims about the task.
        usual_or_none: the judged claim that the usual method is better than no decay.
    """

    scale: str
    panel: Mapping[str, Any]
    rows: pd.DataFrame
    found: pd.DataFrame
    curves: Mapping[str, pd.Series]
    smallest: float
    usual_or_none: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The title of the panel."""
        return self.panel["title"]

    @property
    def best(self) -> list[str]:
        """The methods that may be the best, the best mean first."""
        return list(self.found.index[self.found["may_be_best"]])

    @property
    def close(self) -> list[str]:
        """The methods that are surely close to the best: by less than the smallest difference of the claims."""
        return list(self.found.index[self.found["behind_high"] <= self.smallest])

    def value(self, score: float, digits: int = 1) -> str:
        """Return a score as text; ``digits`` after the point if it is a percentage, else three."""
        rounded = round(100 * score, digits) if self.panel.get("percent") else round(score, digits := 3)
        return f"{rounded + 0.0:.{digits}f}"  # no minus before a zero

    def size(self, difference: float) -> str:
        """Return a difference of two scores with its unit."""
        return f"{self.value(difference)} {'points' if self.panel.get('percent') else 'nats'}"

    def behind(self, method: str) -> str:
        """Return how far a method is behind the best, with the simultaneous interval; a dash for the best itself."""
        row = self.found.loc[method]
        if method == self.found.index[0]:
            return "-"
        middle, low, high = (self.value(row[name], 2) for name in ("behind", "behind_low", "behind_high"))
        return f"{middle} [{low}, {high}]"


def tasks(results: Path = RESULTS) -> list[Task]:
    """Return the tasks of the study, of all scales whose files are in ``results``."""
    made = []
    for scale in SCALES:
        declared, files = declaration.read(STUDY, scale), FigureFiles.of(STUDY, scale, results)
        rows = pd.read_csv(files.table) if files.table.exists() else None
        claims = json.loads(files.verdicts.read_text())["claims"] if files.verdicts.exists() else ()
        usual = {c["panel"]: c for c in claims if (c["a"], c["b"]) == ({"method": USUAL}, {"method": NONE})}
        for panel in declared["at"]["panels"] if rows is not None else ():
            found = ranking.against_best(ranking.scores(rows, panel), ranking.metric_of(panel)[1])
            curves = {method: ranking.budget_curve(rows, panel, method) for method in found.index}
            own = rows[rows["panel"] == panel["panel"]]
            claim = usual[panel["panel"]]
            made.append(Task(scale, panel, own, found, curves, claim["smallest_difference"], claim))
    return made


def page(made: Sequence[Task]) -> str:
    """Return the page in Markdown, with links relative to ``docs``."""
    by_scale = {scale: [task for task in made if task.scale == scale] for scale in SCALES}
    parts = [part for of_scale in by_scale.values() for part in _scale(of_scale)]
    return Template(TEMPLATE.read_text()).substitute(advice="\n".join(_advice(made)), tasks="\n\n".join(parts)) + "\n"


def _advice(made: Sequence[Task]) -> Iterator[str]:
    """Yield what the tasks tell someone who has to choose."""
    count = len(made)
    scales = " and ".join(f"{sum(t.scale == s for t in made)} at `{s}` scale" for s in SCALES if s in {*_scales(made)})
    yield f"From {_number(count, 'task')}, {scales}. In brackets are simultaneous intervals.\n"
    behind = [task for task in made if NONE not in task.best]
    yield f"- **Decay at all?** No decay is worse than the best in {len(behind)} of {count}:"
    for task in behind:
        at_edge = f". {_edge_of_none(task)}" if _edge_of_none(task) else ""
        yield f"  - {task.title}: by {task.behind(NONE)} {_unit(task)}{at_edge}."
    yield f"- **{USUAL} or no decay?** The verdicts on the claim that {USUAL} is better:"
    for task in made:
        measured = task.usual_or_none["sentence"].removeprefix(task.usual_or_none["statement"]).strip()
        yield f"  - {task.title}: *{task.usual_or_none['verdict']}*. {measured}"
    ranked = ranking.ranks({f"{task.scale} {task.title}": task.found for task in made})["mean"].dropna()
    yield (
        "- **Safe choices.** The number of tasks in which a method may be the best, and in which it is surely close to "
        f"it (at most {' or '.join(dict.fromkeys(task.size(task.smallest) for task in made))} behind):"
    )
    times = {m: (sum(m in t.best for t in made), sum(m in t.close for t in made)) for m in ranked.index}
    for pair in sorted({*times.values()}, reverse=True):
        if 2 * pair[0] > count:
            named = _list([method for method in times if times[method] == pair])
            yield f"  - {pair[0]} and {pair[1]} of {count}: {named}."
    yield f"- **If you use {USUAL} already.** It may be the best in {times[USUAL][0]} of {count}. Behind the best:"
    yield from (
        f"  - {task.title}: by {task.behind(USUAL)} {_unit(task)}." for task in made if task.found.index[0] != USUAL
    )
    yield (
        f"- **With few trials.** The best scores to expect of {FEW} trials, on the one seed on which settings were "
        f"chosen (not comparable with the means below), next to {USUAL} and no decay:"
    )
    for task in made:
        of_few = {method: curve[FEW] for method, curve in task.curves.items()}
        sign = ranking.metric_of(task.panel)[1]
        others = [method for method in of_few if method not in (USUAL, NONE)]
        easiest = sorted(others, key=lambda method: (-sign * of_few[method], method))[:3]
        named = ", ".join(f"*{method}* {task.value(of_few[method])}" for method in easiest)
        yield f"  - {task.title}: {named}; {USUAL} {task.value(of_few[USUAL])}, no decay {task.value(of_few[NONE])}."
    yield f"- **If you want zeros.** The methods with at least {100 * SPARSE:.0f} % zeros, and how far behind they are:"
    for task in made:
        zeros = _medians(task, "sparsity/weights")
        sparse = [f"*{m}* ({100 * zeros[m]:.0f} %) {task.behind(m)}" for m in task.found.index if zeros[m] >= SPARSE]
        yield f"  - {task.title}: {'; '.join(sparse) or 'none'}."


def _edge_of_none(task: Task) -> str:
    """Return a sentence if the best trial of no decay has the lowest learning rate of its trials, else ""."""
    lowest = _trials(task, NONE)["optimizer.lr"].min()
    chosen = _judged(task, NONE)["optimizer.lr"].iloc[0]
    if chosen > lowest:
        return ""
    return "Its best trial has the lowest learning rate of all its trials, so a lower one may do better"


def _scales(made: Sequence[Task]) -> list[str]:
    """Return the scale of each task."""
    return [task.scale for task in made]


def _unit(task: Task) -> str:
    """Return the unit of differences of scores."""
    return "points" if task.panel.get("percent") else "nats"


def _trials(task: Task, method: str) -> pd.DataFrame:
    """Return the last line of each trial of a method."""
    last = selection.last_lines(task.rows[task.rows["method"] == method])
    return last[last["stage"] == "trial"]


def _judged(task: Task, method: str) -> pd.DataFrame:
    """Return the last line of each judged run of a method."""
    return selection.judged(selection.last_lines(task.rows[task.rows["method"] == method]))


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
    head = ["method", "mean [95 %]", "behind the best [simultaneous 95 %]", "may be the best"]
    head += [f"of {budget}" for budget in budgets] + ["zeros", "norm", "learning rate", "strength"]
    lines = [head, ["---"] * len(head)]
    for method, row in task.found.iterrows():
        cells = [method, f"{task.value(row['mean'])} [{task.value(row['low'])}, {task.value(row['high'])}]"]
        cells += [task.behind(method), "yes" if row["may_be_best"] else ""]
        cells += [task.value(task.curves[method][budget]) for budget in budgets]
        cells += [f"{100 * zeros[method]:.0f} %", f"{norm[method]:.3g}", *_setting(task, method)]
        lines.append(cells)
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    values = ranking.scores(task.rows, task.panel)
    sign = ranking.metric_of(task.panel)[1]
    without = [int(ranking.against_best(values.drop(index=seed), sign)["may_be_best"].sum()) for seed in values.index]
    margin = ((task.found["behind_high"] - task.found["behind_low"]) / 2).iloc[1:].median()
    unit = "percent" if task.panel.get("percent") else "nats"
    return (
        f"### {task.title}\n\n{len(task.best)} of {len(task.found)} methods may be the best: {_list(task.best)}. "
        f"Without any one of the seeds it would be {min(without)} to {max(without)} methods. The intervals reach "
        f"{task.size(margin)} to either side (their median); {task.size(task.smallest)} count in claims.\n\n"
        f"`{column}` in {unit}; {trials} trials for each method, {seeds} seeds of the chosen setting. *Of k*: the "
        f"score to expect of the best on validation of k trials, on the one seed of the trials. {AT_EDGE}: no trial "
        f"lies beyond.\n\n{table}"
    )


def _setting(task: Task, method: str) -> tuple[str, str]:
    """Return the chosen learning rate and strength (or warm start) of a method, marked if no trial lies beyond it."""
    trials, chosen = _trials(task, method), _judged(task, method).iloc[0]
    marked = {}
    for column in SEARCHED:
        if trials.get(column) is not None and trials[column].nunique() > 1:
            is_last = chosen[column] in (trials[column].min(), trials[column].max())
            marked[column] = f"{chosen[column]:.2g}{AT_EDGE if is_last else ''}"
    lr, *other = marked.values()
    return lr, (f"warm start {other[0]}" if SEARCHED[2] in marked else other[0]) if other else ""


def write(results: Path = RESULTS) -> None:
    """Write the page."""
    PAGE.write_text(page(tasks(results)))
    print(f"page     {PAGE}")


if __name__ == "__main__":
    write()
