"""The plots of P2 (p-norm weight decay, arXiv 2404.10824).

Called by ``figures``, which reads their names in ``configs/figure``. A plot is a function of the table of the runs, the
table of the probes if the figure has one, and the declarations of the panels. It returns the picture.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from wdlab.analysis import selection, style

FORM_TITLES = {"lp": "in the gradient", "pnorm": "decoupled (pWD)"}
STEPS_SHOWN = 80  # of a path; later the weights do not move any more
# Distances, positive for an accuracy and negative for a loss. NEAR: the distance from AdamW's best value that counts as
# near. CLOSER: the distance from the best value of all methods down to which the closer view reaches.
NEAR_ACCURACY, NEAR_NATS = 0.01, -0.05
CLOSER_ACCURACY, CLOSER_NATS = 0.08, -0.5


def fig4(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw paths of one weight (upper row), and the end of each path against the minimum of the loss (lower row).

    In the left column the penalty is in the gradient, in the right column it is decoupled. Thin lines are exact fixed
    points. If a weight does not settle, a bar spans the middle half of its values in the last quarter of its path.
    """
    figure, axes = plt.subplots(2, 2, figsize=(7.2, 5.6), sharey="row", layout="constrained")
    titles = {panel["panel"]: panel["title"] for panel in panels}
    for column, (form, name) in enumerate(FORM_TITLES.items()):
        rows = table[table["regularizer"] == form]
        _paths(axes[0, column], rows[rows["panel"] == "paths"])
        _ends(axes[1, column], rows[rows["panel"] == "shrinkage"])
        axes[0, column].set_title(f"{titles['paths']}: {name}")
        axes[1, column].set_title(f"{titles['shrinkage']}: {name}")
    axes[0, 0].set_ylabel("weight w")
    axes[1, 0].set_ylabel("w at the end")
    axes[0, 1].legend(loc=(0.42, 0.18), ncols=2, fontsize=7)
    axes[1, 1].legend(loc="upper left", fontsize=7.5)
    return figure


def _paths(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the weight by step, one line for each start, and the fixed points at which the lines should end."""
    for value in rows["fixed_point"].unique():
        axes.axhline(value, color="0.6", linewidth=1)
    for (start, path), color, line in zip(rows.groupby("start"), 2 * style.PALETTE, 3 * style.LINES, strict=False):
        axes.plot(path["step"], path["weight"], line, color=color, linewidth=1.1, label=f"from {start:g}")
    axes.set_xlim(-2, STEPS_SHOWN)
    axes.set_xlabel("step")


def _ends(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw for each p the end of each path against its target (the minimum of the loss), and a line of fixed points.

    If a weight does not settle, a bar spans its quartiles, with the marker in the middle of the bar.
    """
    last = rows[rows["step"] == rows["step"].max()]
    for (p, part), color, marker in zip(last.groupby("p"), style.PALETTE, style.MARKERS, strict=False):
        part = part.sort_values("target")
        axes.plot(part["target"], part["fixed_point"], color=color, alpha=0.5, linewidth=1)
        ends = part["weight"].fillna((part["low"] + part["high"]) / 2)
        bars = [ends - part["low"], part["high"] - ends]
        bars = [bar.where(part["weight"].isna(), 0.0) for bar in bars]
        axes.errorbar(part["target"], ends, bars, fmt=marker, color=color, mfc="white", ms=4.5, label=f"p = {p:g}")
    axes.set_xlabel("target: where the loss is least")


def fig5(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw test accuracy against the share of weights that are not zero: for each method a line over its strengths.

    The right column is a closer view. The grey region has more than 90 % zeros and an accuracy at most 0.01 below the
    accuracy of AdamW's best strength.
    """
    figure, grid = _against_density(table, panels, "test/accuracy", "test accuracy", NEAR_ACCURACY, CLOSER_ACCURACY)
    for axes in grid.flat:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    return figure


def fig7(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw test loss against the share of weights that are not zero: for each method a line over its strengths.

    The right column is a closer view. The grey region has more than 90 % zeros and a loss at most 0.05 nats above the
    loss of AdamW's best strength.
    """
    return _against_density(table, panels, "test/loss", "test loss (nats per character)", NEAR_NATS, CLOSER_NATS)[0]


def _against_density(
    table: pd.DataFrame, panels: list[Mapping[str, Any]], metric: str, label: str, near: float, closer: float
) -> tuple[Figure, np.ndarray]:
    """Draw the last value of a metric against the share of weights that are not zero, one row per panel.

    Args:
        table: the rows of the runs.
        panels: the declarations of the panels.
        metric: a column of the table.
        label: the label of the y axis.
        near: how far below AdamW's best value (above it, if negative) a value still counts as near.
        closer: how far below the best value (above it, if negative) the axes of the right column reach. The right
            column is left out if it would show hardly less than the left column.

    Returns:
        The figure, and an array of its axes (panels, columns).
    """
    ends = selection.last_lines(table)
    ends = ends.assign(density=1 - ends["sparsity/weights"])
    values = ends.groupby("panel")[metric]
    zoom = (values.max() - values.min() > 2 * abs(closer)).any()
    shape = (len(panels), 1 + zoom)
    figure, grid = plt.subplots(
        *shape, figsize=(4.2 * shape[1] + 1.4 * (not zoom), 3.4 * shape[0] + 0.4), squeeze=False, layout="constrained"
    )
    looks = style.looks_by_method(ends)
    for axes, panel in zip(grid, panels, strict=True):
        rows = ends[ends["panel"] == panel["panel"]]
        for _, look, part in style.by_method(rows, looks):
            spread = selection.summarize_over_seeds(part, "regularizer.strength", ["density", metric])
            for one in axes:
                _strengths(one, spread["density"], spread[metric], look)
        axes[0].set_title(panel["title"])
        axes[0].set_ylabel(label)
        best = rows[metric].max() if closer > 0 else rows[metric].min()
        axes[-1].set_title("closer" if zoom else panel["title"])
        if zoom:
            axes[-1].set_ylim(*sorted((best - closer, best + closer / 10)))
        for one in axes:
            one.set_xscale("log")
            one.invert_xaxis()
            one.set_xlabel("weights that are not zero")
            one.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
            one.xaxis.set_minor_formatter(NullFormatter())
            _near_adamw(one, rows, metric, near)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure, grid


def _near_adamw(axes: Axes, rows: pd.DataFrame, metric: str, near: float) -> None:
    """Shade the region with more than 90 % zeros and a metric at most ``near`` worse than AdamW's best mean."""
    means = rows[rows["regularizer"] == "decoupled"].groupby("regularizer.strength")[metric].mean()
    if means.empty:
        return
    (left, right), limits = axes.get_xlim(), axes.get_ylim()
    edge = (means.max() if near > 0 else means.min()) - near
    axes.fill_between([min(0.1, left), right], edge, limits[1] if near > 0 else limits[0], color="0.88", zorder=0)
    axes.set_xlim(left, right)
    axes.set_ylim(limits)


def _strengths(axes: Axes, x: pd.DataFrame, y: pd.DataFrame, look: style.Look) -> None:
    """Draw a line with a marker for each strength at the means over seeds, and bars over the ranges.

    Args:
        axes: the axes to draw in.
        x: ``mean``, ``min`` and ``max`` over seeds for each strength, as ``summarize_over_seeds`` returns them.
        y: the same for the vertical axis.
        look: the look of the method.
    """
    bars = [np.maximum(0, [v["mean"] - v["min"], v["max"] - v["mean"]]) for v in (y, x)]
    drawn = {"color": look.color, "linestyle": look.line, "marker": look.marker, "label": look.label}
    axes.errorbar(x["mean"], y["mean"], *bars, **drawn, ms=4.5, mfc="white", elinewidth=0.7)


def fig6(table: pd.DataFrame, sizes: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw a histogram of log10 |w| for each method, one below another, with a bar at the left for the zeros.

    Args:
        table: the rows of the runs; not used.
        sizes: the probe's table, with the share of weights in each bin for each run.
        panels: the declarations of the panels, one column of axes each.
    """
    looks = style.looks_by_method(sizes)
    figure, grid = plt.subplots(
        len(looks),
        len(panels),
        figsize=(4.6 * len(panels) + 0.6, 1.15 * len(looks) + 1),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for column, panel in zip(grid.T, panels, strict=True):
        rows = sizes[sizes["panel"] == panel["panel"]]
        column[0].set_title(panel["title"])
        for axes, (_, look, part) in zip(column, style.by_method(rows, looks), strict=True):
            _histogram(axes, part, look)
        column[-1].set_xticks([-13.5, -12, -9, -6, -3, 0], ["zero", "-12", "-9", "-6", "-3", "0"])
        column[-1].set_xlabel("log10 |w|")
    figure.supylabel("share of weights", fontsize=9)
    return figure


def _histogram(axes: Axes, rows: pd.DataFrame, look: style.Look) -> None:
    """Draw the share of weights in each bin, and at the left the share of zeros: means and ranges over seeds."""
    width = float(np.diff(np.sort(rows["log10_size"].unique())[:2])[0])
    shares = selection.summarize_over_seeds(rows, "log10_size", ["share"])["share"]
    zero = selection.summarize_over_seeds(rows.drop_duplicates("run").assign(left=-14), "left", ["zero"])["zero"]
    for spread, wide in ((shares, width), (zero, 4 * width)):
        bars = np.maximum(0, [spread["mean"] - spread["min"], spread["max"] - spread["mean"]])
        drawn = {"yerr": bars, "align": "edge", "color": look.color, "error_kw": {"elinewidth": 0.6}}
        axes.bar(spread.index, spread["mean"], wide, **drawn)
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 1.3)
    strength = rows["regularizer.strength"].iloc[0]
    axes.text(0.3, 0.8, f"{look.label}, s = {strength:g}", transform=axes.transAxes, fontsize=8)
    axes.axvline(-13, color="0.7", linewidth=0.8)
