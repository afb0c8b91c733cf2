"""The plots of P1 (PathProx, arXiv 2210.03069) that compare PathProx with weight decay; ``balance`` has the other.

Called by ``figures``, which reads their names in ``configs/figure``. A plot is a function of the table of the runs, the
table of the probes if the figure has one, and the declarations of the panels. It returns the picture.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from wdlab.analysis import selection, style

SMALL = 0.1  # units with a path below this share of the largest of their pair are small, in fig2
DENSE = "l2"  # the regularizer that leaves no dead units, in fig2
FRAME = 0.1  # the axes of test accuracy in fig2 end this far below the best mean, or at the lowest seed
PROBED = ("units", "parameters", "latency", "test_accuracy")  # columns of fig2's probe
STRENGTH = "regularizer.strength"
SPIKE = 2  # a seed above this multiple of its method's median is not counted in the range of fig3's upper axes


class _Removal(NamedTuple):
    """The networks of one method after the removal of units.

    Attributes:
        name: method and removal, as the legend names them.
        regularizer: the regularizer of the method.
        seeds: the probe's rows, with a row for each run.
        over: mean, median, least and largest value over seeds of the columns ``PROBED``, by strength.
        drawn: matplotlib's options for the curve.
    """

    name: str
    regularizer: str
    seeds: pd.DataFrame
    over: pd.DataFrame
    drawn: dict[str, Any]


def fig2(table: pd.DataFrame, pruned: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw test accuracy against the units left and against the strength, and parameters and latency left.

    Args:
        table: the rows of the runs.
        pruned: the probe's table, with size, latency and accuracy of each run's network after the removal of units.
        panels: the declarations of the panels, one row of axes each.
    """
    figure, rows_of_axes = plt.subplots(
        len(panels), 3, figsize=(10.5, 3.7 * len(panels) + 0.6), squeeze=False, layout="constrained"
    )
    ends, looks, shown = selection.last_lines(table), style.looks_by_method(table), {}
    for axes, panel in zip(rows_of_axes, panels, strict=True):
        last, removed = (part[part["panel"] == panel["panel"]] for part in (ends, pruned))
        dead, small = (_removals(removed[removed["share"] == share], looks, share) for share in (0, SMALL))
        if dead:  # else each setting has a run that diverged
            best = max(curve.over["test_accuracy", "mean"].max() for curve in dead)
            sparse = [curve for curve in dead if curve.regularizer != DENSE]
            _accuracy_by_strength(axes[1], dead, last, best)
            _accuracy_by_units(
                axes[0], [*small, *sparse], [curve for curve in dead if curve.regularizer == DENSE], best
            )
            _size_by_strength(axes[2], [*small, *sparse], best - FRAME)
            axes[0].set_title(panel["title"])
            for one in axes:
                one.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            for one in axes[:2]:
                shown |= dict(zip(*reversed(one.get_legend_handles_labels()), strict=True))
    order = sorted(shown)  # all curves of a method are next to each other
    figure.legend([shown[label] for label in order], order, loc="outside upper center", ncols=3, handlelength=3)
    return figure


def _removals(rows: pd.DataFrame, looks: Mapping[style.Method, style.Look], share: float) -> list[_Removal]:
    """Return the curve of each method for one ``share`` of the probe's rows (see ``studies.checkpoints.pruned``).

    A strength of which a run has diverged is left out.
    """
    curves = []
    for regularizer, look, part in style.by_method(rows, looks):
        over = selection.summarize_over_seeds(part, STRENGTH, [*PROBED])
        drawn = {"color": look.color, "linestyle": look.line, "marker": look.marker, "ms": 4.5, "mfc": "white"}
        if share:
            line, marker = ("-.", "s") if regularizer == DENSE else (":", "^")
            drawn |= {"linestyle": line, "marker": marker, "ms": 3.5, "mfc": look.color}
        units = "small units removed" if share else "all units" if regularizer == DENSE else "dead units removed"
        if len(over):
            curves.append(_Removal(f"{look.label}, {units}", regularizer, part, over, drawn))
    return curves


def _accuracy_by_units(axes: Axes, curves: list[_Removal], dense: list[_Removal], best: float) -> None:
    """Draw test accuracy against the units left: medians, and paler each seed; of dense networks the best mean."""
    _frame_accuracy(axes, curves, "units", best)
    for curve in dense:
        level = curve.over["test_accuracy", "mean"].max()
        axes.axhline(level, color="0.4", linewidth=1, label=f"{curve.name}, best mean", zorder=1)
    axes.annotate("", (0.03, 0.96), (0.25, 0.96), xycoords="axes fraction", arrowprops={"arrowstyle": "->"})
    axes.text(0.27, 0.96, "growing strength", transform=axes.transAxes, va="center", fontsize=7)
    axes.set_xlabel("units left")
    axes.set_xlim(0, 1.04)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))


def _accuracy_by_strength(axes: Axes, curves: list[_Removal], last: pd.DataFrame, best: float) -> None:
    """Draw test accuracy against strength: medians, paler each seed, and a ring at the lowest mean validation loss."""
    _frame_accuracy(axes, curves, STRENGTH, best)
    label = "with the lowest mean validation loss"
    for curve in curves:
        losses = last[last["regularizer"] == curve.regularizer]
        mean = selection.summarize_over_seeds(losses, STRENGTH, ["val/loss"])["val/loss", "mean"]
        chosen = curve.over["test_accuracy", "median"].reindex(mean.index[mean == mean.min()])
        axes.plot(chosen, "o", ms=11, mfc="none", mec="black", mew=1.2, label=label)
    axes.set_xlabel("strength s")
    axes.set_xscale("log")
    axes.margins(x=0.1)  # with room for the numbers under the dotted line


def _frame_accuracy(axes: Axes, curves: list[_Removal], across: str, best: float) -> None:
    """Draw curves of test accuracy and their seeds. Seeds far below the best, if any, are in rows under a line.

    Args:
        axes: the axes to draw in.
        curves: the curves, one row each under the dotted line, with the number of its seeds there.
        across: the column of the x axis.
        best: the best mean; the band within a point of it is grey.
    """
    floor = best - FRAME
    axes.axhspan(best - 0.01, best, color="0.9", zorder=0, label="within a point of the best mean")
    for k, curve in enumerate(curves):
        pale = curve.drawn | {"linestyle": "none", "alpha": 0.25, "ms": 2}
        inside = curve.seeds["test_accuracy"] >= floor
        axes.plot(curve.seeds.loc[inside, across], curve.seeds.loc[inside, "test_accuracy"], **pale)
        x = curve.over.index if across == STRENGTH else curve.over[across, "median"]
        axes.plot(x, curve.over["test_accuracy", "median"], **curve.drawn, label=curve.name)
        below = curve.seeds.loc[curve.seeds["test_accuracy"] < floor, across]
        height = floor - 0.012 * (k + 1)
        axes.plot(below, [height] * len(below), **curve.drawn | {"linestyle": "none", "ms": 3})
        for place, count in _counts(below, across).items():
            offset = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
            axes.annotate(f"↓{count}", (place, height), color=curve.drawn["color"], **offset)
    bottom = min(curve.seeds["test_accuracy"].min() for curve in curves) - 0.005
    if bottom < floor:
        axes.axhline(floor, color="0.6", linewidth=0.6, linestyle=":")
        bottom = floor - 0.012 * (len(curves) + 1)
    axes.set_yticks([tick for tick in np.arange(0, 1.01, 0.02) if tick >= max(floor, bottom)])
    axes.set_ylim(bottom, best + 0.2 * (best - bottom))
    axes.set_ylabel("test accuracy")


def _counts(below: pd.Series, across: str) -> dict[float, int]:
    """Return the number of seeds at each strength, or that of all seeds at the largest place if x is no strength."""
    return dict(Counter(below)) if across == STRENGTH or below.empty else {below.max(): len(below)}


def _size_by_strength(axes: Axes, curves: list[_Removal], floor: float) -> None:
    """Draw the parameters left (lines) and the latency left (markers) against strength: medians, least and most.

    Strengths at which a method fails, with a median accuracy below the floor, are left out and named.
    """
    failed = []
    for k, curve in enumerate(curves):
        fails = curve.over["test_accuracy", "median"] < floor
        over, color = curve.over[~fails], curve.drawn["color"]
        if fails.any():
            strengths = ", ".join(f"{strength:g}" for strength in curve.over.index[fails])
            failed.append(f"{curve.name}: s = {strengths}")
        parameters, latency = over["parameters"], over["latency"]
        axes.plot(parameters["median"], **curve.drawn | {"marker": "none"})
        axes.fill_between(over.index, parameters["min"], parameters["max"], color=color, alpha=0.12, linewidth=0)
        bars = [latency["median"] - latency["min"], latency["max"] - latency["median"]]
        beside = over.index * 1.06 ** (k - 1)  # markers of several curves would hide each other
        axes.errorbar(beside, latency["median"], bars, **curve.drawn | {"linestyle": "none"}, elinewidth=0.6)
    axes.plot([], [], color="0.3", label="lines: parameters")
    axes.errorbar([], [], [], color="0.3", marker="o", mfc="white", ms=4.5, linestyle="none", label="markers: latency")
    axes.legend(loc="upper right", ncols=2, fontsize=7)
    if failed:
        text = "\n".join([f"not drawn, median accuracy below {floor:.0%}:", *failed])
        axes.text(0.02, 0.02, text, transform=axes.transAxes, fontsize=6, color="0.3")
    axes.set_ylabel("share of the network with all units")
    axes.set_ylim(0, 1.25)
    axes.set_xlabel("strength s")
    axes.set_xscale("log")


def fig3(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw the objective (upper row) and the active units (lower row) against iteration, one column per panel.

    Thick lines are medians over seeds, thin lines the seeds. Diamonds are values read from the authors' released plots,
    in panels that have them. The region before the train losses are near zero is grey. There, or in the first tenth of
    a run, the objective may be above the frame. Later on a seed above the frame is named.
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
        start = rows["step"].max() / 10
        if "near_zero" in panel:
            end, label = _near_zero(rows, panel["near_zero"]), "before the train losses are near zero"
            start = min(start, end)
            for one in (objective, active):
                one.axvspan(0, end, color="0.93", linewidth=0, zorder=0, label=label)
        _frame_objective(objective, rows[rows["step"] >= start], looks)
        active.set_ylim(-0.02, 1.05)
        active.yaxis.set_major_formatter(PercentFormatter(1.0))
        active.xaxis.set_major_formatter(EngFormatter(sep=""))
        active.set_xlabel("iteration")
    axes[0, 0].set_ylabel("objective (nats)\ntrain loss + s · path-norm")
    axes[1, 0].set_ylabel("active units\n(non-zero path)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(labels)))
    return figure


def _frame_objective(axes: Axes, rows: pd.DataFrame, looks: Mapping[style.Method, style.Look]) -> None:
    """Set the range of an axis to that of the objective in some rows, without spikes; name each seed above the range.

    Args:
        axes: the axes, with a logarithmic y axis.
        rows: the rows of a panel from the step on at which the frame shall hold all lines.
        looks: the looks of the figure's methods.
    """
    by_method = {
        look: part.pivot_table(index="step", columns="seed", values="objective/path_norm")
        for _, look, part in style.by_method(rows.dropna(subset=["objective/path_norm"]), looks)
    }
    if not by_method:
        return
    medians = {look: values.median(axis=1) for look, values in by_method.items()}
    ordinary = [values[values.le(SPIKE * medians[look], axis=0)] for look, values in by_method.items()]
    top = 1.1 * max(values.max().max() for values in ordinary)
    bottom = 0.9 * min(values.min().min() for values in ordinary)
    axes.set_ylim(bottom, top)
    middle, height = rows["step"].max() / 2, 0.98
    for look, values in by_method.items():
        for seed in values.columns[(values > top).any()]:
            step, most = values[seed].idxmax(), values[seed].max()
            text, side = f"{look.label}, seed {seed}, to {most:.2g}", "right" if step > middle else "left"
            text = f"{text} ↑" if side == "right" else f"↑ {text}"
            place = {"transform": axes.get_xaxis_transform(), "ha": side, "va": "top"}
            axes.text(step, height, text, **place, color=look.color, fontsize=7)
            height -= 0.06
    subs = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if top < 6 * bottom else (1, 2, 3, 5)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


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
