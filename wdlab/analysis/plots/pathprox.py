"""The plots of P1 (PathProx, arXiv 2210.03069). Called by ``figures``, which reads their names in ``configs/figure``.

A plot is a function of the table of the runs, the table of the probes if the figure has one, and the declarations of
the panels. It returns the picture.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from wdlab.analysis import selection, style


def fig1(table: pd.DataFrame, units: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw imbalance against iteration (left), and the norms of all units at the beginning and the end (right).

    Args:
        table: the rows of the runs.
        units: the probe's table, with a row for each unit.
        panels: the declarations of the panels, one row of axes each.
    """
    figure, rows_of_axes = plt.subplots(
        len(panels), 3, figsize=(9.6, 3.3 * len(panels)), squeeze=False, layout="constrained"
    )
    looks = style.looks_by_method(table)
    for axes, panel in zip(rows_of_axes, panels, strict=True):
        rows, dots = (part[part["panel"] == panel["panel"]] for part in (table, units))
        _curves(axes[0], rows, looks, "imbalance", {})
        axes[0].set_title(panel["title"])
        axes[0].set_ylim(bottom=0)
        axes[0].set_xlabel("iteration")
        axes[0].set_ylabel("imbalance (share of the penalty)")
        axes[0].xaxis.set_major_formatter(EngFormatter(sep=""))
        axes[0].legend()
        for scatter, step, title in zip(
            axes[1:], (0, dots["step"].max()), ("at the beginning", "at the end"), strict=True
        ):
            _unit_norms(scatter, dots[dots["step"] == step], looks)
            scatter.set_title(title)
    return figure


def _unit_norms(axes: Axes, units: pd.DataFrame, looks: Mapping[style.Method, style.Look]) -> None:
    """Draw a dot for each unit at its input and output norm, and the line on which the two norms are equal."""
    largest = 1.05 * max(units["input_norm"].max(), units["output_norm"].max())
    axes.plot([0, largest], [0, largest], color="0.5", linewidth=1)
    for _, look, part in style.by_method(units, looks):
        dots = {"color": look.color, "mfc": "none", "ms": 3, "alpha": 0.5, "label": look.label}
        axes.plot(part["input_norm"], part["output_norm"], look.marker, **dots)
    axes.set_xlim(0, largest)
    axes.set_ylim(0, largest)
    axes.set_aspect("equal")
    axes.set_xlabel("input norm |w|")
    axes.set_ylabel("output norm |v|")


def fig2(table: pd.DataFrame, pruned: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw test accuracy against active units, and accuracy and latency after pruning against the parameters left.

    Args:
        table: the rows of the runs.
        pruned: the probe's table, with size, latency and accuracy of each run's network after pruning.
        panels: the declarations of the panels, one row of axes each.
    """
    figure, rows_of_axes = plt.subplots(
        len(panels), 3, figsize=(9.6, 3.3 * len(panels)), squeeze=False, layout="constrained"
    )
    ends, looks = selection.last_lines(table), style.looks_by_method(table)
    for axes, panel in zip(rows_of_axes, panels, strict=True):
        last, small = (part[part["panel"] == panel["panel"]] for part in (ends, pruned))
        _points(axes[0], last, looks, "sparsity/active_units", "test/accuracy")
        _points(axes[1], small, looks, "parameters", "test_accuracy")
        _points(axes[2], small, looks, "parameters", "latency")
        axes[0].set_title(panel["title"])
        axes[0].set_xlabel("active units (non-zero path)")
        axes[1].set_title("dead units taken out")
        axes[2].set_title("dead units taken out")
        for one in axes[:2]:
            one.set_ylabel("test accuracy")
            one.yaxis.set_major_formatter(PercentFormatter(1.0))
        for one in axes[1:]:
            one.set_xlabel("parameters left")
        for one in axes:
            one.xaxis.set_major_formatter(PercentFormatter(1.0))
            one.set_xlim(0, 1.04)
        axes[2].set_ylabel("latency left")
        axes[2].set_ylim(0, 1.2)
        axes[2].yaxis.set_major_formatter(PercentFormatter(1.0))
        axes[0].legend()
    return figure


def _points(axes: Axes, rows: pd.DataFrame, looks: Mapping[style.Method, style.Look], x: str, y: str) -> None:
    """Draw a line per method: for each strength a marker at the means of x and y over seeds, with bars over ranges."""
    for _, look, part in style.by_method(rows, looks):
        spread = selection.summarize_over_seeds(part, "regularizer.strength", [x, y])
        bars = [[spread[key]["mean"] - spread[key]["min"], spread[key]["max"] - spread[key]["mean"]] for key in (y, x)]
        drawn = {"color": look.color, "linestyle": look.line, "marker": look.marker, "label": look.label}
        axes.errorbar(spread[x]["mean"], spread[y]["mean"], *bars, **drawn, ms=4.5, mfc="white", elinewidth=0.8)


def fig3(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw the objective (upper row) and the active units (lower row) against iteration, one column per panel.

    Lines are means over seeds, and bands reach from the lowest to the highest seed. Diamonds are values read from the
    authors' released plots, in panels that have them. In the first tenth of a run the objective may be above the frame.
    """
    figure, axes = plt.subplots(
        2, len(panels), figsize=(3.6 * len(panels) + 0.6, 5.2), sharex="col", squeeze=False, layout="constrained"
    )
    looks = style.looks_by_method(table)
    for column, panel in enumerate(panels):
        rows = table[table["panel"] == panel["panel"]]
        objective, active = axes[0, column], axes[1, column]
        _curves(objective, rows, looks, "objective/path_norm", panel.get("reference", {}))
        _curves(active, rows, looks, "sparsity/active_units", panel.get("reference", {}))
        objective.set_title(panel["title"])
        settled = rows.loc[rows["step"] >= rows["step"].max() / 10, "objective/path_norm"]
        if settled.notna().any():
            objective.set_ylim(0, 1.1 * settled.max())
        active.set_ylim(-0.02, 1.05)
        active.yaxis.set_major_formatter(PercentFormatter(1.0))
        active.xaxis.set_major_formatter(EngFormatter(sep=""))
        active.set_xlabel("iteration")
    axes[0, 0].set_ylabel("objective (nats)\ntrain loss + s · path-norm")
    axes[1, 0].set_ylabel("active units\n(non-zero path)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _curves(
    axes: Axes,
    rows: pd.DataFrame,
    looks: Mapping[style.Method, style.Look],
    metric: str,
    reference: Mapping[str, Mapping],
) -> None:
    """Draw a metric by step for each method: the mean over seeds, the range over seeds, and reference values.

    Args:
        axes: the axes to draw in.
        rows: the rows of a panel.
        looks: the looks of the figure's methods.
        metric: a column of the rows.
        reference: reference values by metric, regularizer and step; {} for none.
    """
    for name, look, part in style.by_method(rows, looks):
        by_step = selection.summarize_over_seeds(part, "step", [metric])[metric]
        axes.plot(by_step.index, by_step["mean"], color=look.color, linestyle=look.line, label=look.label)
        axes.fill_between(by_step.index, by_step["min"], by_step["max"], color=look.color, alpha=0.2, linewidth=0)
        points = reference.get(metric, {}).get(name, {})
        if points:
            label = f"{look.label}, as released"
            axes.plot(list(points), list(points.values()), "D", color=look.color, mfc="white", ms=5, label=label)
