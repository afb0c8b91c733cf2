"""The plot of the study of all methods at the same tuning budget: study1.

Called by ``figures``, which reads its name in ``configs/figure``. A plot is a function of the table of the runs and the
declarations of the panels. It returns the picture.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from wdlab.analysis import ranking, selection
from wdlab.analysis.style import PALETTE

BLUE, GREY = PALETTE[0], "0.6"
WIDTHS = (2.6, 2.6, 1, 1, 1, 1)  # of the axes of a task
LINE, MARGIN = 0.165, 3.6  # height of a method in inches; room for titles and labels of a task, in methods
BESIDE = {  # what is shown beside the score: its title, and whether its axis is logarithmic
    "sparsity/weights": ("zero weights", False),
    "norm/weight_l2": ("norm of weights", True),
    "gradient/full_norm": ("gradient norm", True),
    "sharpness/top_eigenvalue": ("sharpness", True),
}
LABELS = 3  # on an axis beside the scores, at most
MARKERS = ("o", "s", "D", "^", "v")  # of the tasks


def study1(table: pd.DataFrame, panels: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw a row of axes for each task, with a line for each method, and the ranks of the methods in all tasks.

    The axes of a task are the score of the chosen setting, the score by number of trials, and other measurements at the
    end of the judged runs. Its methods are in the order of their means.

    Args:
        table: the rows of the trials and of the judged runs.
        panels: the declarations of the panels. Each has ``score``, the label of the score; ``worst``, the score of a
            run that diverged; and ``percent: true`` if the score is a share.
    """
    found = {
        panel["panel"]: ranking.against_best(ranking.scores(table, panel), ranking.metric_of(panel)[1])
        for panel in panels
    }
    lines = [len(of_task) + MARGIN for of_task in found.values()]
    lines += [max(lines)] if len(panels) > 1 else []
    figure = plt.figure(figsize=(11, LINE * sum(lines) + 1.2), layout="constrained")
    grid = figure.add_gridspec(len(lines), len(WIDTHS), width_ratios=WIDTHS, height_ratios=lines)
    for place, panel in enumerate(panels):
        axes = [figure.add_subplot(grid[place, column]) for column in range(len(WIDTHS))]
        _task(axes, table, panel, found[panel["panel"]])
    if len(panels) > 1:
        axes = [figure.add_subplot(grid[-1, columns]) for columns in (slice(0, 2), slice(2, None))]
        _ranks(*axes, ranking.ranks(found), [panel["title"] for panel in panels])
    _legend(figure)
    return figure


def _task(axes: Sequence[Axes], table: pd.DataFrame, panel: Mapping[str, Any], found: pd.DataFrame) -> None:
    """Draw the axes of a task.

    Args:
        axes: as many as ``WIDTHS``.
        table: the rows of the study.
        panel: the declaration of the task's panel.
        found: what ``ranking.against_best`` returns of the task.
    """
    for one in axes:
        _lines_of_methods(one, list(found.index) if one is axes[0] else [], len(found))
    values = ranking.scores(table, panel)[found.index]
    for line, (method, row) in enumerate(found.iterrows()):
        axes[0].plot(values[method], np.full(len(values), line), "|", color=GREY, ms=5, mew=0.7, zorder=1)
        axes[0].plot([row["low"], row["high"]], [line, line], color=BLUE, linewidth=1.6, zorder=2)
        filling = BLUE if row["may_be_best"] else "white"
        axes[0].plot(row["mean"], line, "o", color=BLUE, mfc=filling, ms=5, mew=1.2, zorder=3)
    _budgets(axes[1], [ranking.budget_curve(table, panel, method) for method in found.index], panel)
    rows = selection.judged(selection.last_lines(table[table["panel"] == panel["panel"]]))
    for one, (column, (title, is_logarithmic)) in zip(axes[2:], BESIDE.items(), strict=True):
        if column in rows:
            _measured(one, rows, column, list(found.index), is_logarithmic)
        one.set_title(title, fontsize=8.5)
    if ranking.metric_of(panel)[1] < 0:
        axes[0].invert_xaxis()
    for one in axes[:2]:
        one.set_xlabel(panel["score"])
        if panel.get("percent"):
            one.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}")
    axes[0].set_title(panel["title"], loc="left", fontweight="bold", pad=16)
    axes[1].set_title("the best of 1, 2, 4, ... trials", fontsize=8.5)
    axes[1].xaxis.set_major_locator(MaxNLocator(LABELS + 1))


def _budgets(axes: Axes, curves: Sequence[pd.Series], panel: Mapping[str, Any]) -> None:
    """Draw the expected score by number of trials of each method, as circles that grow with the number.

    The frame holds all trials of each method, and begins no later than where a single trial of the middle method ends.
    Methods that fail at most settings do not squeeze the others. An arrow at its edge stands for scores outside.
    """
    sign = ranking.metric_of(panel)[1]
    scores = sign * np.array([curve.to_numpy() for curve in curves])
    least, most = min(np.median(scores[:, 0]), scores[:, -1].min()), scores.max()
    least -= 0.15 * (most - least)
    for line, of_method in enumerate(scores):
        inside = of_method >= least
        drawn, sizes = of_method[inside], np.linspace(8, 55, len(of_method))[inside]
        ends = sign * np.array([max(of_method.min(), least), of_method.max()])
        axes.plot(ends, [line, line], color=GREY, linewidth=0.8, zorder=1)
        axes.scatter(sign * drawn, np.full(len(drawn), line), s=sizes, facecolors="white", edgecolors="black", zorder=2)
        if not inside.all():
            axes.plot(sign * least, line, "<", color="black", ms=4, clip_on=False)
    axes.set_xlim(sign * least, sign * (most + 0.06 * (most - least)))


def _lines_of_methods(axes: Axes, names: Sequence[str], count: int) -> None:
    """Give axes a line for each of several methods, the first one at the top, with their names if there are any."""
    axes.set_yticks(range(count), names or [""] * count)
    axes.set_ylim(count - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.tick_params(axis="x", labelsize=8)


def _measured(axes: Axes, rows: pd.DataFrame, column: str, methods: Sequence[str], is_logarithmic: bool) -> None:
    """Draw the median of a measurement over the judged runs of each method, and its range over seeds as a line."""
    by_method = rows.groupby("method")[column]
    for line, method in enumerate(methods):
        values = by_method.get_group(method).dropna()
        if len(values):
            axes.plot([values.min(), values.max()], [line, line], color=GREY, linewidth=1.2)
            axes.plot(values.median(), line, "D", color="black", ms=3)
    if is_logarithmic:
        axes.set_xscale("log")
        _label_few(axes)


def _label_few(axes: Axes) -> None:
    """Give a logarithmic axis two or three labels: powers of ten, or 1, 2 and 5 times them, or 1 to 9 times."""
    low, high = axes.get_xlim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [
        [d * 10.0**k for k in decades for d in times if low <= d * 10.0**k <= high]
        for times in ((1,), (1, 2, 5), range(1, 10))
    ]
    powers, ticks = inside[0], next((found for found in inside if len(found) > 1), inside[-1])
    few = ticks[:: math.ceil(len(ticks) / LABELS)]
    if powers == ticks:
        axes.set_xticks(few)
    else:
        axes.set_xticks(few, [f"{tick:g}" for tick in few])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _ranks(axes: Axes, beside: Axes, ranks: pd.DataFrame, titles: Sequence[str]) -> None:
    """Draw the rank of each method in each task, and the mean rank of those methods that are in all tasks.

    Args:
        axes: of the ranks.
        beside: where the markers of the tasks are explained.
        ranks: what ``ranking.ranks`` returns.
        titles: of the tasks.
    """
    _lines_of_methods(axes, list(ranks.index), len(ranks))
    tasks = [column for column in ranks if column != "mean"]
    for line, (_, row) in enumerate(ranks.iterrows()):
        axes.plot([row[tasks].min(), row[tasks].max()], [line, line], color=GREY, linewidth=0.8, zorder=1)
        axes.plot(row["mean"], line, "|", color=BLUE, ms=9, mew=2.4, zorder=3)
        for task, marker in zip(tasks, MARKERS, strict=False):
            axes.plot(row[task], line, marker, color="black", mfc="white", ms=4.5, zorder=2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rank of the mean, 1 is the best; bars: mean over the tasks")
    axes.set_title("rank in each task", loc="left", fontweight="bold")
    handles = [
        Line2D([], [], marker=marker, color="black", mfc="white", ms=4.5, linestyle="", label=title)
        for marker, title in zip(MARKERS, titles, strict=False)
    ]
    beside.axis("off")
    beside.legend(handles=handles, loc="upper left", title="task", alignment="left")


def _legend(figure: Figure) -> None:
    """Explain the markers, above the picture."""
    drawn = {"color": BLUE, "marker": "o", "ms": 5, "linewidth": 1.6}
    handles = [
        Line2D([], [], **drawn, label="may be the best"),
        Line2D([], [], **drawn, mfc="white", label="not among these"),
        Line2D([], [], marker="|", color=GREY, linestyle="", ms=5, label="a seed"),
        Line2D([], [], marker="o", color="black", mfc="white", linestyle="", ms=5, label="larger: more trials"),
        Line2D([], [], marker="D", color="black", ms=3, linewidth=1.2, label="median, and range over seeds"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8)
