"""The plots of P1 (PathProx, arXiv 2210.03069). Called by ``figures``, which reads their names in ``configs/figure``.

A plot is a function of the table of the runs, the table of the probes if the figure has one, and the declarations of
the panels. It returns the picture.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from wdlab.analysis import selection, style

SMALLEST_IMBALANCE = 1e-7  # the lower end of the axis; float32 norms are exact to about this
DECAY = r"its start times $e^{-4\,\mathrm{lr}\,s\,t}$"
SMALL = 0.1  # units with a path below this share of the largest of their pair are small, in fig2
DENSE = "l2"  # the regularizer that leaves no dead units, in fig2
FRAME = 0.1  # the axes of test accuracy in fig2 end this far below the best
PROBED = ("units", "parameters", "latency", "test_accuracy")  # columns of fig2's probe


def fig1(table: pd.DataFrame, units: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw imbalance against iteration (left), and the norms of all units at the beginning and the end (right).

    All methods start from the same weights, so the beginning is drawn for one of them.

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
        _imbalance(axes[0], rows, dots, looks)
        axes[0].set_title(panel["title"])
        first, last = (dots[dots["step"] == step] for step in (0, dots["step"].max()))
        _unit_norms(axes[1], first[first["regularizer"] == first["regularizer"].iloc[0]], looks)
        axes[1].set_title("at the beginning, the same for both")
        _unit_norms(axes[2], last, looks)
        axes[2].set_title("at the end")
        axes[2].legend(fontsize=6, loc="upper left", markerscale=1.5)
    return figure


def _imbalance(axes: Axes, rows: pd.DataFrame, units: pd.DataFrame, looks: Mapping[style.Method, style.Look]) -> None:
    """Draw the imbalance by step: of all units as lines, of the units in use at the last step as markers.

    A grey line shows the decay under gradient flow, ``exp(-4 lr s t)``, for each method with a strength above zero.

    Args:
        axes: the axes to draw in.
        rows: the rows of a panel.
        units: the probe's rows of the panel.
        looks: the looks of the figure's methods.
    """
    for _, look, part in style.by_method(rows, looks):
        lines = {"color": look.color, "linestyle": look.line}
        by_seed = part.pivot_table(index="step", columns="seed", values="imbalance")
        axes.plot(by_seed.index, by_seed, **lines, linewidth=0.5, alpha=0.5)
        axes.plot(by_seed.index, by_seed.median(axis=1), **lines, linewidth=2, label=f"{look.label}, all units")
        rate = (part["lr"] * part["strength"]).median()
        if rate > 0:
            flow = by_seed.median(axis=1).iloc[0] * np.exp(-4 * rate * by_seed.index.to_numpy())
            axes.plot(by_seed.index, flow, color="0.6", linewidth=1, zorder=1, label=DECAY)
    ends = units[units["step"] == units["step"].max()].drop_duplicates("run")
    for _, look, part in style.by_method(ends, looks):
        drawn = {"color": look.color, "marker": look.marker, "ms": 5, "linestyle": "none", "clip_on": False}
        values = part["imbalance_in_use"].clip(lower=SMALLEST_IMBALANCE)
        axes.plot(part["step"], values, **drawn, mfc="none", label=f"{look.label}, in use")
    axes.set_yscale("log")
    axes.set_ylim(axes.get_ylim()[0] / 50, 1)  # with room for the legend
    axes.set_xlabel("iteration")
    axes.set_ylabel("imbalance (share of the penalty)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(fontsize=7, loc="lower left")


def _unit_norms(axes: Axes, units: pd.DataFrame, looks: Mapping[style.Method, style.Look]) -> None:
    """Draw a dot for each unit at its input and output norm, and the line on which the two norms are equal.

    Units that are not in use are smaller and paler.
    """
    largest = 1.05 * max(units["input_norm"].max(), units["output_norm"].max())
    axes.plot([0, largest], [0, largest], color="0.5", linewidth=1)
    for _, look, part in style.by_method(units, looks):
        used = part["in_use"].astype(bool)
        drawn = {"color": look.color, "mfc": "none", "linestyle": "none"}
        kinds = [(part[used], "in use", {"marker": look.marker, "ms": 3, "alpha": 0.6})]
        kinds.append((part[~used], "not in use", {"marker": ".", "ms": 2, "alpha": 0.2, "zorder": 1}))
        for dots, kind, shape in kinds:
            if len(dots):
                axes.plot(dots["input_norm"], dots["output_norm"], **drawn, **shape, label=f"{look.label}, {kind}")
    axes.set_xlim(0, largest)
    axes.set_ylim(0, largest)
    axes.set_aspect("equal")
    axes.set_xlabel("input norm |w|")
    axes.set_ylabel("output norm |v|")


class _Removal(NamedTuple):
    """The networks of one method after the removal of units, with a row for each strength."""

    name: str
    regularizer: str
    rows: pd.DataFrame  # medians over seeds of the columns ``PROBED``, by strength
    drawn: dict[str, Any]  # matplotlib's options for the curve


def fig2(table: pd.DataFrame, pruned: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw test accuracy against the units left and against the strength, and parameters and latency left.

    Args:
        table: the rows of the runs.
        pruned: the probe's table, with size, latency and accuracy of each run's network after the removal of units.
        panels: the declarations of the panels, one row of axes each.
    """
    figure, rows_of_axes = plt.subplots(
        len(panels), 3, figsize=(9.6, 3.7 * len(panels)), squeeze=False, layout="constrained"
    )
    ends, looks = selection.last_lines(table), style.looks_by_method(table)
    for axes, panel in zip(rows_of_axes, panels, strict=True):
        last, removed = (part[part["panel"] == panel["panel"]] for part in (ends, pruned))
        dead, small = (_removals(removed[removed["share"] == share], looks, share) for share in (0, SMALL))
        if dead:  # else all runs have diverged
            _accuracy_by_units(axes[0], removed, dead, small)
            axes[0].set_title(panel["title"])
            _accuracy_by_strength(axes[1], removed, dead, last)
            _size_by_strength(axes[2], [*(curve for curve in dead if curve.regularizer != DENSE), *small])
            for one, corner in zip(axes, ("lower right", "lower left", "upper right"), strict=True):
                one.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
                one.legend(fontsize=6.5, loc=corner, frameon=True, framealpha=0.9, edgecolor="none")
    return figure


def _removals(rows: pd.DataFrame, looks: Mapping[style.Method, style.Look], share: float) -> list[_Removal]:
    """Return the curve of each method for one ``share`` of the probe's rows (see ``studies.checkpoints.pruned``)."""
    curves = []
    for regularizer, look, part in style.by_method(rows.dropna(subset=["test_accuracy"]), looks):
        medians = part.groupby("regularizer.strength")[[*PROBED]].median()
        drawn = {"color": look.color, "linestyle": look.line, "marker": look.marker, "ms": 4.5, "mfc": "white"}
        if share:
            line, marker = ("-.", "s") if regularizer == DENSE else (":", "^")
            drawn |= {"linestyle": line, "marker": marker, "ms": 3.5, "mfc": look.color}
        units = "small units removed" if share else "all units" if regularizer == DENSE else "dead units removed"
        curves.append(_Removal(f"{look.label}, {units}", regularizer, medians, drawn))
    return curves


def _accuracy_by_units(axes: Axes, rows: pd.DataFrame, dead: list[_Removal], small: list[_Removal]) -> None:
    """Draw test accuracy against the units left: medians, and paler each seed; of the dense network its best median."""
    _frame_accuracy(axes, dead)
    for curve in dead:
        if curve.regularizer == DENSE:
            best = curve.rows["test_accuracy"].max()
            axes.axhline(best, color="0.4", linewidth=1, label=f"{curve.name}, best", zorder=1)
    for share, curves in ((SMALL, small), (0, [curve for curve in dead if curve.regularizer != DENSE])):
        for curve in curves:
            seeds = rows[(rows["share"] == share) & (rows["regularizer"] == curve.regularizer)]
            paler = curve.drawn | {"linestyle": "none", "alpha": 0.25, "ms": 2}
            axes.plot(seeds["units"], seeds["test_accuracy"], **paler)
            axes.plot(curve.rows["units"], curve.rows["test_accuracy"], **curve.drawn, label=curve.name)
    axes.annotate("", (0.03, 0.95), (0.25, 0.95), xycoords="axes fraction", arrowprops={"arrowstyle": "->"})
    axes.text(0.27, 0.95, "growing strength", transform=axes.transAxes, va="center", fontsize=7)
    axes.set_xlabel("units left")
    axes.set_xlim(0, 1.04)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))


def _accuracy_by_strength(axes: Axes, rows: pd.DataFrame, dead: list[_Removal], last: pd.DataFrame) -> None:
    """Draw test accuracy against strength: medians, filled at the lowest validation loss, and paler each seed."""
    _frame_accuracy(axes, dead)
    for curve in dead:
        seeds = rows[(rows["share"] == 0) & (rows["regularizer"] == curve.regularizer)]
        paler = curve.drawn | {"linestyle": "none", "alpha": 0.25, "ms": 2}
        axes.plot(seeds["regularizer.strength"], seeds["test_accuracy"], **paler)
        accuracy = curve.rows["test_accuracy"]
        axes.plot(accuracy.index, accuracy, **curve.drawn, label=curve.name.partition(",")[0])
        losses = last[last["regularizer"] == curve.regularizer].groupby("regularizer.strength")["val/loss"].median()
        filled = curve.drawn | {"mfc": curve.drawn["color"], "ms": 6, "linestyle": "none", "zorder": 3}
        axes.plot(accuracy.reindex(losses.index[losses == losses.min()]), **filled)
    axes.set_xlabel("strength")
    axes.set_xscale("log")


def _frame_accuracy(axes: Axes, curves: list[_Removal]) -> None:
    """Set the range of an axis of test accuracy, and mark the values within a point of the best median."""
    best = max(curve.rows["test_accuracy"].max() for curve in curves)
    axes.axhspan(best - 0.01, best, color="0.9", zorder=0)
    axes.set_ylim(best - FRAME, best + 0.025)
    axes.set_ylabel("test accuracy")


def _size_by_strength(axes: Axes, curves: list[_Removal]) -> None:
    """Draw the medians of the parameters left (lines) and the latency left (markers alone) against strength.

    Strengths at which a method fails, with an accuracy below the frame of the other axes, are left out.
    """
    best = max(curve.rows["test_accuracy"].max() for curve in curves)
    for curve in curves:
        rows = curve.rows[curve.rows["test_accuracy"] > best - FRAME]
        axes.plot(rows["parameters"], **curve.drawn | {"marker": "none", "label": curve.name})
        axes.plot(rows["latency"], **curve.drawn | {"linestyle": "none", "alpha": 0.5})
    axes.set_title("lines: parameters; markers: latency", fontsize=8)
    axes.set_ylabel("left after removal")
    axes.set_ylim(0, 1.3)
    axes.set_xlabel("strength")
    axes.set_xscale("log")


def fig3(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw the objective (upper row) and the active units (lower row) against iteration, one column per panel.

    Thick lines are medians over seeds, thin lines the seeds. Diamonds are values read from the authors' released plots,
    in panels that have them. The region before the train losses are near zero is grey. In the first tenth of a run the
    objective may be above the frame.
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
        objective.set_yscale("log")
        settled = rows.loc[rows["step"] >= rows["step"].max() / 10, "objective/path_norm"]
        if settled.notna().any():
            objective.set_ylim(0.9 * settled.min(), 1.2 * settled.max())
        objective.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        objective.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        objective.yaxis.set_minor_formatter(NullFormatter())
        active.set_ylim(-0.02, 1.05)
        active.yaxis.set_major_formatter(PercentFormatter(1.0))
        active.xaxis.set_major_formatter(EngFormatter(sep=""))
        active.set_xlabel("iteration")
        if "near_zero" in panel:
            end, label = _near_zero(rows, panel["near_zero"]), "before the train losses are near zero"
            for one in (objective, active):
                one.axvspan(0, end, color="0.93", linewidth=0, zorder=0, label=label)
    axes[0, 0].set_ylabel("objective (nats)\ntrain loss + s · path-norm")
    axes[1, 0].set_ylabel("active units\n(non-zero path)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(labels)))
    return figure


def _near_zero(rows: pd.DataFrame, level: float) -> float:
    """Return the median over seeds of the first step at which every method has had a train loss at or below a level.

    A run that never reaches the level counts with the last step of the panel.
    """
    first = rows[rows["train/loss"] <= level].groupby("run")["step"].min()
    runs = rows.drop_duplicates("run").set_index("run")["seed"]
    return float(first.reindex(runs.index).fillna(rows["step"].max()).groupby(runs).max().median())


def _curves(
    axes: Axes,
    rows: pd.DataFrame,
    looks: Mapping[style.Method, style.Look],
    metric: str,
    reference: Mapping[str, Mapping],
) -> None:
    """Draw a metric by step for each method: every seed, the median over seeds, and reference values.

    Args:
        axes: the axes to draw in.
        rows: the rows of a panel.
        looks: the looks of the figure's methods.
        metric: a column of the rows.
        reference: reference values by metric, regularizer and step; {} for none.
    """
    for name, look, part in style.by_method(rows, looks):
        by_seed = part.pivot_table(index="step", columns="seed", values=metric)
        lines = {"color": look.color, "linestyle": look.line}
        axes.plot(by_seed.index, by_seed, **lines, linewidth=0.5, alpha=0.5)
        median = selection.summarize_over_seeds(part, "step", [metric])[metric]["median"]
        axes.plot(median.index, median, **lines, linewidth=2, label=look.label)
        points = reference.get(metric, {}).get(name, {})
        if points:
            label = f"{look.label}, as released"
            axes.plot(list(points), list(points.values()), "D", color=look.color, mfc="white", ms=5, label=label)
