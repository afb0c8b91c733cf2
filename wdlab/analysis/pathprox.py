"""The figures of P1 (PathProx, arXiv 2210.03069). Called by ``figures`` through their names in ``configs/figure``."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from wdlab.analysis import style


def fig3(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Objective (upper row) and active units (lower row) against iteration, one column per panel.

    Lines are means over seeds, bands reach from the lowest to the highest seed; diamonds are the authors' released
    curves where they were read off (P1). The first tenth of a run may leave the frame of the objective at its top.
    """
    figure, axes = plt.subplots(
        2, len(panels), figsize=(3.6 * len(panels) + 0.6, 5.2), sharex="col", squeeze=False, layout="constrained"
    )
    for column, panel in enumerate(panels):
        rows = table[table["panel"] == panel["panel"]]
        objective, active = axes[0, column], axes[1, column]
        _curves(objective, rows, "objective/path_norm", panel.get("reference", {}))
        _curves(active, rows, "sparsity/active_units", panel.get("reference", {}))
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


def _curves(axes: Axes, rows: pd.DataFrame, metric: str, reference: Mapping[str, Mapping]) -> None:
    """Mean and range over seeds of a metric by step, per regularizer, with the reference points of that metric."""
    for name, part in rows.dropna(subset=[metric]).groupby("regularizer", sort=False):
        color, line, label = style.METHODS[name]
        by_step = part.groupby("step")[metric].agg(["mean", "min", "max"])
        axes.plot(by_step.index, by_step["mean"], color=color, linestyle=line, label=f"{label}")
        axes.fill_between(by_step.index, by_step["min"], by_step["max"], color=color, alpha=0.2, linewidth=0)
        points = reference.get(metric, {}).get(name, {})
        if points:
            axes.plot(
                list(points), list(points.values()), "D", color=color, mfc="white", ms=5, label=f"{label}, as released"
            )
