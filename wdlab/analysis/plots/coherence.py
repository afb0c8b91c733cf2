"""The plot of P3 (gradient-coherent strong regularization, arXiv 1811.08056) over steps; ``strong`` has the others."""

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wdlab.analysis.plots.strong import CONSTANT, LOOKS, PERCENT, by_method
from wdlab.analysis.style import Look

FALLEN = 0.2  # the share of the first value at which the dotted line is, as in ``studies.strong``
SMOOTHED = 5  # log lines over which the share of seeds is averaged
WIDEST, NARROWEST = 3.6, 1.5  # the first method is on top and narrow, so that all are seen where they coincide

# The rows of the picture: a column of the table, its label, and whether its axis is logarithmic.
ROWS = (
    ("norm/weight_l2", "norm of the\nweights", True),
    ("gradient/full_weights_norm", "norm of the loss gradient\n(by weights, full split)", True),
    ("gradient/coherence", "cosine of loss and\ntotal gradient", False),
    ("strength", "share of seeds with\npenalty in force", False),
)


def fig9(table: pd.DataFrame, measured: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw norms, coherence and the share of seeds with the penalty in force by step, one column of axes per panel.

    Args:
        table: the rows of the runs.
        measured: the probe's table; not used.
        panels: the declarations of the panels.
    """
    shape = (len(ROWS), len(panels))
    size = (3.3 * shape[1] + 0.5, 1.75 * shape[0] + 0.9)
    figure, grid = plt.subplots(*shape, figsize=size, sharex="col", sharey="row", squeeze=False, layout="constrained")
    for column, panel in zip(grid.T, panels, strict=True):
        rows = table[table["panel"] == panel["panel"]]
        for axes, (metric, _, logarithmic) in zip(column, ROWS, strict=True):
            draw = _share_in_force if metric == "strength" else _curves(metric, logarithmic)
            draw(axes, rows)
        column[0].set_title(panel["title"])
        column[-1].set_xlabel("step")
    for axes, (_, label, _) in zip(grid[:, 0], ROWS, strict=True):
        axes.set_ylabel(label)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, handlelength=4)
    return figure


def _curves(metric: str, logarithmic: bool) -> Callable[[Axes, pd.DataFrame], None]:
    """Return a function that draws a metric by step: each seed, and the median over seeds of each method.

    Of the cosine no seeds of a gate are drawn: they jump between 0 and 1 and hide each other.

    Args:
        metric: a column of the table.
        logarithmic: True for a logarithmic axis with a dotted line at a fifth of the median first value.
    """

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        for (look, part), top in _layers(rows):
            by_seed = part.pivot_table(index="step", columns="seed", values=metric)
            lines = {"color": look.color, "linestyle": look.line}
            if logarithmic or look == LOOKS[CONSTANT, None]:
                axes.plot(by_seed.index, by_seed, **lines, linewidth=0.5, alpha=0.4)
            axes.plot(by_seed.index, by_seed.median(axis=1), **lines, **top, label=look.label)
        if logarithmic:
            axes.set_yscale("log")
            first = rows.loc[rows["step"] == rows["step"].min(), metric].median()
            axes.axhline(FALLEN * first, color="0.4", linewidth=0.9, linestyle=":")

    return draw


def _layers(rows: pd.DataFrame) -> list[tuple[tuple[Look, pd.DataFrame], dict[str, float]]]:
    """Return look and rows of each method, with matplotlib's options for the width of its medians and their layer."""
    methods = list(by_method(rows))
    widths = np.linspace(NARROWEST, WIDEST, max(len(methods), 2))
    return [
        (method, {"linewidth": width, "zorder": 4 - width / 4}) for method, width in zip(methods, widths, strict=False)
    ]


def _share_in_force(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw by step the share of the seeds in which the penalty is in force, as a mean over neighbouring log lines."""
    for (look, part), top in _layers(rows[rows["step"] > 0]):
        shares = (part["strength"] > 0).groupby(part["step"]).mean()
        smooth = shares.rolling(SMOOTHED, center=True, min_periods=1).mean()
        axes.plot(smooth, color=look.color, linestyle=look.line, **top)
    axes.set_ylim(-0.05, 1.08)
    axes.yaxis.set_major_formatter(PERCENT)
