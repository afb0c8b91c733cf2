"""The plot of P1 (PathProx, arXiv 2210.03069) that shows how weight decay balances units. Called by ``figures``.

Like the other plots it is a function of the tables and of the declarations of the panels, and returns the picture.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from wdlab.analysis import style

SMALLEST_NORM = 1e-3  # the axes of norms end here or above
SMALLEST_IMBALANCE = 1e-7  # markers are not drawn below; float32 norms are exact to about this
UNUSED = {"color": "black", "marker": ".", "ms": 4, "mec": "white", "mew": 0.2, "linestyle": "none", "zorder": 4}


def fig1(table: pd.DataFrame, units: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw imbalance against iteration (left), and the norms of the units of all seeds at the beginning and the end.

    All methods start from the same weights, so the beginning is drawn for one of them. The end has axes for each.

    Args:
        table: the rows of the runs.
        units: the probe's table, with a row for each unit.
        panels: the declarations of the panels, one row of axes each.
    """
    looks = style.looks_by_method(table)
    columns = 2 + len(looks)
    figure, rows_of_axes = plt.subplots(
        len(panels),
        columns,
        figsize=(2.7 * columns, 3.4 * len(panels)),
        width_ratios=[1.3, *[1] * (columns - 1)],
        squeeze=False,
        layout="constrained",
    )
    for axes, panel in zip(rows_of_axes, panels, strict=True):
        rows, dots = (part[part["panel"] == panel["panel"]] for part in (table, units))
        _imbalance(axes[0], rows, dots, looks)
        axes[0].set_title(panel["title"])
        first, last = (dots[dots["step"] == step] for step in (0, dots["step"].max()))
        norms = dots[["input_norm", "output_norm"]]
        ends = (max(0.8 * norms.min().min(), SMALLEST_NORM), 1.2 * norms.max().max())
        start = next(style.by_method(first, looks))
        _unit_norms(axes[1], start[2], start[1], ends)
        axes[1].set_title("units at the beginning (same for all)")
        axes[1].set_ylabel("output norm |v|")
        for one, (_, look, part) in zip(axes[2:], style.by_method(last, looks), strict=False):
            _unit_norms(one, part, look, ends)
            one.set_title(f"at the end, {look.label}")
    handles, labels = rows_of_axes[0, 0].get_legend_handles_labels()
    handles += plt.plot([], [], **UNUSED)
    figure.legend(handles, [*labels, "units not in use"], loc="outside upper center", ncols=3)
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
            axes.plot(by_seed.index, flow, color="0.6", linewidth=1, zorder=1, label="gradient flow: exp(-4 lr s t)")
    ends = units[units["step"] == units["step"].max()].drop_duplicates("run")
    for _, look, part in style.by_method(ends, looks):
        drawn = {"color": look.color, "marker": look.marker, "ms": 5, "linestyle": "none", "clip_on": False}
        values = part["imbalance_in_use"].clip(lower=SMALLEST_IMBALANCE)
        axes.plot(part["step"], values, **drawn, mfc="none", label=f"{look.label}, units in use")
    axes.set_yscale("log")
    axes.set_xlabel("iteration t")
    axes.set_ylabel("imbalance (share of the penalty)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _unit_norms(axes: Axes, units: pd.DataFrame, look: style.Look, ends: tuple[float, float]) -> None:
    """Draw a marker for each unit at its input and output norm, and the line on which the two norms are equal.

    Args:
        axes: the axes to draw in.
        units: the probe's rows of one method at one step.
        look: the look of the method; units that are not in use are black dots.
        ends: the ends of both axes, which are logarithmic. Smaller norms are drawn at the lower end.
    """
    norms, used = units[["input_norm", "output_norm"]].clip(lower=ends[0]), units["in_use"].astype(bool)
    shape = {"color": look.color, "marker": look.marker, "ms": 3, "mfc": "none", "mew": 0.5, "linestyle": "none"}
    axes.plot(ends, ends, color="0.5", linewidth=1)
    axes.plot(*norms[used].to_numpy().T, **shape, alpha=0.6)
    axes.plot(*norms[~used].to_numpy().T, **UNUSED)
    if not used.all():
        text = f"{(~used).sum():,} of {len(used):,} not in use"
        axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize=7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    axes.set_aspect("equal")
    axes.set_xlabel("input norm |w|")
