"""The plot of P4 (early weight decay, arXiv 2012.13841) about what makes weights grow: fig13.

Called by ``figures``, which reads the name in ``configs/figure``. A plot is a function of the table of the runs and of
the declarations of the panels. It returns the picture.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wdlab.analysis import selection
from wdlab.analysis.plots.early import NORM, PERCENT, STRENGTH, draw_curve, logarithmic
from wdlab.analysis.style import PALETTE, Look

NOISE, SIZE, STEPS = "dataset.label_noise", "dataset.train_size", "train.steps"
SHADES = ((PALETTE[4], "-"), (PALETTE[0], "--"), (PALETTE[1], "-."), (PALETTE[3], ":"))


def fig13(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw the norm of the weights over updates by label noise and by number of images, and both at the end.

    Panels have a row of axes each. A norm at the end is relative to that of the run with the same seed and
    strength, all images and no noise.

    Args:
        table: the rows of the runs.
        panels: the declarations of the panels.
    """
    size = (12, 3.2 * len(panels) + 0.3)
    figure, grid = plt.subplots(len(panels), 4, figsize=size, squeeze=False, layout="constrained")
    for axes, panel in zip(grid, panels, strict=True):
        rows = table[table["panel"] == panel["panel"]]
        longest, largest = rows[STEPS].max(), rows[SIZE].max()
        full = rows[(rows[STEPS] == longest) & (rows[STRENGTH] == 0)]
        _curves(axes[0], full[full[SIZE] == largest], NOISE, "{:.0f} % noise")
        _curves(axes[1], full[full[NOISE] == 0], SIZE, "{:,.0f} images")
        axes[1].sharey(axes[0])
        for one in axes[:2]:
            logarithmic(one.yaxis)
            one.set_xlabel("updates")
        axes[0].set(ylabel="norm of the weights, no decay", title=panel["title"])
        ends = relative_to_clean(selection.last_lines(rows))
        _by_noise(axes[2], ends[ends[STEPS] == longest], largest)
        _by_size(axes[3], ends[ends[STRENGTH] == 0], longest)
    return figure


def relative_to_clean(ends: pd.DataFrame) -> pd.DataFrame:
    """Return the last rows of the runs with a column ``relative``.

    It is the norm over that of the longest run with the same seed and strength, all images and no noise; less 1.
    """
    of_clean = (ends[NOISE] == 0) & (ends[SIZE] == ends[SIZE].max()) & (ends[STEPS] == ends[STEPS].max())
    clean = ends[of_clean].set_index(["seed", STRENGTH])[NORM]
    norms = clean.reindex(pd.MultiIndex.from_frame(ends[["seed", STRENGTH]])).to_numpy()
    return ends.assign(relative=ends[NORM].to_numpy() / norms - 1)


def _curves(axes: Axes, rows: pd.DataFrame, column: str, text: str) -> None:
    """Draw the norm of the weights over updates for each value of a column, the least noise or most images first."""
    values = sorted(rows[column].unique(), reverse=column == SIZE)
    for value, (color, line) in zip(values, SHADES, strict=False):
        look = Look(color, line, "", text.format(value * (100 if column == NOISE else 1)))
        draw_curve(axes, rows[rows[column] == value], "step", NORM, look, True)
    axes.legend(fontsize=8)


def _by_noise(axes: Axes, ends: pd.DataFrame, largest: int) -> None:
    """Draw the growth by label noise, with all images, for each strength."""
    for strength, look in zip(sorted(ends[STRENGTH].unique()), _looks(("o", "s")), strict=False):
        label = "no decay" if strength == 0 else f"L2, s = {strength:g}"
        part = ends[(ends[STRENGTH] == strength) & (ends[SIZE] == largest)]
        _medians(axes, part, NOISE, look._replace(label=label))
    axes.set(xlabel="share of wrong labels", ylabel="growth of the norm at the end\nagainst all images, no noise")
    axes.xaxis.set_major_formatter(PERCENT)
    axes.legend(fontsize=8)


def _by_size(axes: Axes, ends: pd.DataFrame, longest: int) -> None:
    """Draw the growth by number of images, at equal updates with and without noise, and at equal epochs."""
    clean, noisy = ends[ends[NOISE] == 0], ends[ends[NOISE] == ends[NOISE].max()]
    all_images = clean[clean[SIZE] == clean[SIZE].max()]
    kinds = (
        ("equal updates", clean[clean[STEPS] == longest]),
        ("equal epochs", pd.concat([clean[clean[STEPS] < longest], all_images])),
        (f"{100 * ends[NOISE].max():g} % noise, equal updates", noisy[noisy[STEPS] == longest]),
    )
    for (label, part), look in zip(kinds, _looks(("o", "s", "^")), strict=True):
        _medians(axes, part, SIZE, look._replace(label=label))
    axes.set_xscale("log")
    sizes = sorted(ends[SIZE].unique())
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="training images", ylabel="growth of the norm at the end\nagainst all images, no noise")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))  # room for the legend
    axes.legend(fontsize=8)


def _looks(markers: Sequence[str]) -> list[Look]:
    """Return the looks of the lines at the end of the runs."""
    return [Look(color, line, marker, "") for (color, line), marker in zip(SHADES, markers, strict=False)]


def _medians(axes: Axes, ends: pd.DataFrame, x: str, look: Look) -> None:
    """Draw relative norms against a column: each seed as a small marker, and the medians as a line."""
    drawn = {"color": look.color, "marker": look.marker}
    axes.plot(ends[x], ends["relative"], **drawn, ms=2, alpha=0.4, linestyle="none")
    medians = ends.groupby(x)["relative"].median()
    axes.plot(medians, **drawn, linestyle=look.line, ms=5, mfc="white", linewidth=1.6, label=look.label)
    axes.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    axes.yaxis.set_major_formatter(PERCENT)
