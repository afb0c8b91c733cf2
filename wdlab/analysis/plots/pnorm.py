"""The plots of P2 (p-norm weight decay, arXiv 2404.10824).

Called by ``figures``, which finds them by name in ``configs/figure``.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from wdlab.analysis import claims, style

FORMS = {"lp": "in the gradient", "pnorm": "decoupled (pWD)"}
STEPS_SHOWN = 80  # of a path; later nothing moves any more
# Positive for an accuracy, negative for a loss. NEAR: the distance from AdamW that counts as near. CLOSER: the distance
# from the best value that the closer view shows.
NEAR, NEAR_NATS = 0.01, -0.05
CLOSER, CLOSER_NATS = 0.08, -0.5


def fig4(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw paths of one weight (upper row), and its end against the loss's minimum (lower row).

    Left the penalty is in the gradient, right it is decoupled. Thin lines are exact fixed points. Bars span the middle
    half of the values of a weight that does not settle, in the last quarter of its path.
    """
    figure, axes = plt.subplots(2, 2, figsize=(7.2, 5.6), sharey="row", layout="constrained")
    titles = {panel["panel"]: panel["title"] for panel in panels}
    for column, (form, name) in enumerate(FORMS.items()):
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
    """Draw the weight by step, a line per start, and the fixed points at which the lines should end."""
    for value in rows["fixed_point"].unique():
        axes.axhline(value, color="0.6", linewidth=1)
    for (start, path), color, line in zip(rows.groupby("start"), 2 * style.PALETTE, 3 * style.LINES, strict=False):
        axes.plot(path["step"], path["weight"], line, color=color, linewidth=1.1, label=f"from {start:g}")
    axes.set_xlim(-2, STEPS_SHOWN)
    axes.set_xlabel("step")


def _ends(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the end of each path against its target, and a curve of fixed points per p.

    For a weight that does not settle a bar shows its range, and the marker is in the middle of it.
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
    """Draw test accuracy against the share of weights that are not zero: a curve over strengths per method.

    The right column is a closer view. Grey is the region of more than 90 % zeros in which the accuracy is at most a
    point below that of AdamW's best strength.
    """
    figure, grid = _against_density(table, panels, "test/accuracy", "test accuracy", NEAR, CLOSER)
    for axes in grid.flat:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    return figure


def fig7(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw test loss against the share of weights that are not zero: a curve over strengths per method.

    The right column is a closer view. Grey is the region of more than 90 % zeros in which the loss is at most 0.05 nats
    above that of AdamW's best strength.
    """
    return _against_density(table, panels, "test/loss", "test loss (nats per character)", NEAR_NATS, CLOSER_NATS)[0]


def _against_density(
    table: pd.DataFrame, panels: list[Mapping[str, Any]], metric: str, label: str, near: float, closer: float
) -> tuple[Figure, np.ndarray]:
    """Draw the last value of a metric against the share of weights that are not zero, one row per panel.

    Args:
        table: the rows of the figure.
        panels: its panels.
        metric: a column of the table.
        label: of the metric.
        near: how far below AdamW (above, if negative) a value still counts as near.
        closer: how far below (above) the best value the axes on the right reach. These axes are left out if they would
            show hardly less than the left ones.

    Returns:
        The figure and its axes.
    """
    ends = claims.last_lines(table)
    ends = ends.assign(density=1 - ends["sparsity/weights"])
    values = ends.groupby("panel")[metric]
    zoom = (values.max() - values.min() > 2 * abs(closer)).any()
    shape = (len(panels), 1 + zoom)
    figure, grid = plt.subplots(
        *shape, figsize=(4.2 * shape[1] + 1.4 * (not zoom), 3.4 * shape[0] + 0.4), squeeze=False, layout="constrained"
    )
    looks = style.looks(ends)
    for axes, panel in zip(grid, panels, strict=True):
        rows = ends[ends["panel"] == panel["panel"]]
        for _, look, part in style.by_method(rows, looks):
            found = claims.over_seeds(part, "regularizer.strength", ["density", metric])
            for one in axes:
                _strengths(one, found["density"], found[metric], look)
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
    """Shade the region with more than 90 % zeros and a metric that is near AdamW's best, or better."""
    means = rows[rows["regularizer"] == "decoupled"].groupby("regularizer.strength")[metric].mean()
    if means.empty:
        return
    (left, right), limits = axes.get_xlim(), axes.get_ylim()
    edge = (means.max() if near > 0 else means.min()) - near
    axes.fill_between([min(0.1, left), right], edge, limits[1] if near > 0 else limits[0], color="0.88", zorder=0)
    axes.set_xlim(left, right)
    axes.set_ylim(limits)


def _strengths(axes: Axes, x: pd.DataFrame, y: pd.DataFrame, look: style.Look) -> None:
    """Draw a marker per strength at the mean over seeds, with bars over the range; x, y have columns mean, min, max."""
    bars = [np.maximum(0, [v["mean"] - v["min"], v["max"] - v["mean"]]) for v in (y, x)]
    drawn = {"color": look.color, "linestyle": look.line, "marker": look.marker, "label": look.label}
    axes.errorbar(x["mean"], y["mean"], *bars, **drawn, ms=4.5, mfc="white", elinewidth=0.7)


def fig6(table: pd.DataFrame, sizes: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw histograms of log10 |w|, one below the other for each method, with a bar on the left for the zeros."""
    looks = style.looks(sizes)
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
    """Draw the mean share of weights per bin, with the range over seeds, and the share of zeros at the left."""
    width = float(np.diff(np.sort(rows["log10_size"].unique())[:2])[0])
    shares = claims.over_seeds(rows, "log10_size", ["share"])["share"]
    zero = claims.over_seeds(rows.drop_duplicates("run").assign(at=-14), "at", ["zero"])["zero"]
    for found, wide in ((shares, width), (zero, 4 * width)):
        bars = np.maximum(0, [found["mean"] - found["min"], found["max"] - found["mean"]])
        drawn = {"yerr": bars, "align": "edge", "color": look.color, "error_kw": {"elinewidth": 0.6}}
        axes.bar(found.index, found["mean"], wide, **drawn)
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 1.3)
    strength = rows["regularizer.strength"].iloc[0]
    axes.text(0.3, 0.8, f"{look.label}, s = {strength:g}", transform=axes.transAxes, fontsize=8)
    axes.axvline(-13, color="0.7", linewidth=0.8)
