"""The plot of P4 (early and decoupled weight decay, arXiv 2012.13841) about Adam's routes: fig14.

Called by ``figures``, which reads its name in ``configs/figure``. A plot is a function of the table of the runs and the
declarations of the panels. It returns the picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from wdlab.analysis import selection, tuning, verdicts
from wdlab.analysis.style import PALETTE, Look

STRENGTH, ROUTE, SCORE, NORM = "regularizer.strength", "regularizer.route", "score", "norm/weight_l2"
LOOKS: dict[str, Look] = {  # the routes, in the order of the rows of the middle column
    "both": Look(PALETTE[1], "--", "o", "both (Adam with L2)"),
    "first": Look(PALETTE[3], (0, (5, 1)), "^", "first"),
    "separate": Look(PALETTE[2], "-", "s", "separate"),
    "second": Look("0.55", ":", "D", "second"),
    "decoupled": Look(PALETTE[0], "-.", "v", "decoupled (AdamW)"),
}
UNDER = {"separate": (3.6, 8), "first": (2.0, 5.5)}  # widths and markers of lines on which others lie
TENTH, HALF = 0.1, 0.5  # of the best score, and of the largest norm


def fig14(table: pd.DataFrame, panels: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the score against the strength of each route, its useful range, and the score against the norm, by panel.

    Each panel has a row of three axes; the norm is in units of the median without decay.

    Args:
        table: the rows of the runs. Its column ``score`` is 0 at chance; a run that diverged has a score of 0.
        panels: the declarations of the panels. Each has ``score``, the label of the score.
    """
    ends = selection.last_lines(table)
    size = (11, 2.7 * len(panels) + 0.9)
    figure, grid = plt.subplots(len(panels), 3, figsize=size, squeeze=False, layout="constrained")
    for axes, panel in zip(grid, panels, strict=True):
        rows = ends[ends["panel"] == panel["panel"]]
        unit = rows.loc[rows["regularizer"] == "none", NORM].median()
        rows = rows.assign(**{NORM: rows[NORM] / unit})
        without = rows[rows["regularizer"] == "none"]
        for look, part in by_route(rows):
            _curve(axes[0], part, look, STRENGTH)
            _curve(axes[2], part, look, NORM)
        for one in (axes[0], axes[2]):
            one.axhline(without[SCORE].median(), color="0.3", linewidth=0.9, linestyle=(0, (1, 1)), zorder=0)
            one.set_ylim(min(rows[SCORE].min(), 0) - 0.05 * rows[SCORE].max(), None)
        _ranges(axes[1], rows)
        axes[2].plot(without[NORM], without[SCORE], "x", color="black", ms=4, alpha=0.7)
        axes[0].set(ylabel=f"{panel['title']}\n{panel['score']}", xlabel="strength s")
        axes[1].set(xlabel="strength s")
        axes[1].sharex(axes[0])
        axes[2].set(xlabel="norm of the weights over that without decay", xlim=(-0.03, 1.2))
        for one in axes[:2]:
            one.set_xscale("log")
            one.xaxis.set_major_locator(LogLocator())
            one.xaxis.set_minor_formatter(NullFormatter())
    titles = ("score over strength", "useful range, and where half of the score is lost", "score over norm")
    for one, title in zip(grid[0], titles, strict=True):
        one.set_title(title)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), handlelength=3)
    return figure


def by_route(rows: pd.DataFrame) -> Iterator[tuple[Look, pd.DataFrame]]:
    """Yield the look and the rows of each route that occurs in some rows of the figure's table."""
    for route, look in LOOKS.items():
        part = rows[rows[ROUTE] == route]
        if len(part):
            yield look, part


def strengths_of_loss(rows: pd.DataFrame, column: str, share: float) -> tuple[np.ndarray, bool]:
    """Return the strength at which each seed of a route has lost a share of a column, as claims measure it.

    Also returned is whether all lie between the strengths of the runs. One that does not is the nearest of these.

    Args:
        rows: the last rows of the runs of a route.
        column: the score, or the norm of the weights.
        share: the share of its largest mean over seeds.
    """
    rule = {"lost": {"highest": column, "to": 0.0, "share": share}}
    found = tuning.tuned(rows, rule, STRENGTH, [rows], "fig14")
    return np.array([*found.values.values()]), found.inside


def _curve(axes: Axes, rows: pd.DataFrame, look: Look, x: str) -> None:
    """Draw the scores of a route: thin lines for seeds, a thick one for medians, in the order of the strengths."""
    for _, seed in rows.sort_values(STRENGTH).groupby("seed"):
        axes.plot(seed[x], seed[SCORE], color=look.color, linewidth=0.5, alpha=0.25)
    medians = rows.assign(x=rows[x]).groupby(STRENGTH)[["x", SCORE]].median()
    width, size = UNDER.get(look.label, (1.4, 4))
    drawn = {"color": look.color, "linestyle": look.line, "marker": look.marker, "ms": size, "mfc": "white"}
    axes.plot(medians["x"], medians[SCORE], **drawn, linewidth=width, label=look.label, zorder=3 - width / 10)


def _ranges(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw for each route the useful range as a bar, with its length in decades, and where half of the score is lost.

    The bar reaches from where a tenth of the norm is lost to where a tenth of the score is; it is a dotted line below
    where the score is lost first. Its length is in parentheses if an end lies outside the strengths in a seed. Markers
    have the 95 % interval of the mean logarithm over seeds; filled if a seed keeps half of its score throughout.
    """
    names = []
    for place, (look, part) in enumerate(by_route(rows)):
        names.append(look.label.partition(" ")[0])
        found = [strengths_of_loss(part, column, TENTH) for column in (NORM, SCORE)]
        ends = [np.log(strengths).mean() for strengths, _ in found]
        useful = {"linewidth": 6, "alpha": 0.35, "solid_capstyle": "butt"}
        is_range = ends[0] < ends[1]
        drawn, y = (useful, place) if is_range else ({"linewidth": 2, "linestyle": ":"}, place + 0.25)
        axes.plot(np.exp(ends), [y, y], color=look.color, **drawn)
        decades = f"{(ends[1] - ends[0]) / np.log(10):.1f}"
        decades = decades if all(inside for _, inside in found) else f"({decades})"
        axes.text(1.01, place, decades, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        strengths, inside = strengths_of_loss(part, SCORE, HALF)
        halves, filling = np.log(strengths), "white" if inside else look.color
        axes.plot(np.exp(verdicts.student_interval(halves)), [place, place], color=look.color, linewidth=1.4)
        axes.plot(np.exp(halves.mean()), place, look.marker, color=look.color, ms=5, mfc=filling, mew=1.4)
    axes.text(1.01, -0.75, "decades", transform=axes.get_yaxis_transform(), va="center", fontsize=7, color="0.3")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.9)
