"""The plot of fig4: a single weight under the penalty of P2 (p-norm weight decay, arXiv 2404.10824).

Called by ``figures``, which reads its name in ``configs/figure``.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wdlab.analysis import style

FORM_TITLES = {"lp": "in the gradient", "pnorm": "decoupled (pWD)"}
STEPS_SHOWN = 80  # of a path; later the weights do not move any more


def fig4(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw paths of one weight, where they end, and for P2's quartic loss the end over strength and start.

    In rows 1 and 2 the penalty is in the gradient on the left, and decoupled on the right. Thin lines are exact. If a
    weight does not settle, a bar spans the middle half of its values in the last quarter of its path.
    """
    figure, axes = plt.subplots(3, 2, figsize=(7.2, 8.2), layout="constrained")
    titles = {panel["panel"]: panel["title"] for panel in panels}
    of_panel = dict(list(table.groupby("panel")))
    for column, (form, name) in enumerate(FORM_TITLES.items()):
        for row, (panel, draw) in enumerate({"paths": _paths, "shrinkage": _ends}.items()):
            rows = of_panel[panel]
            draw(axes[row, column], rows[rows["regularizer"] == form])
            axes[row, column].set_title(f"{titles[panel]}: {name}")
            axes[row, 1].sharey(axes[row, 0])
    _over_strength(axes[2, 0], of_panel["end_points"])
    _critical(axes[2, 1], of_panel["critical"])
    for column, panel in enumerate(("end_points", "critical")):
        axes[2, column].set_title(titles[panel])
    axes[0, 0].set_ylabel("weight w")
    axes[1, 0].set_ylabel("w at the end")
    axes[0, 1].legend(loc=(0.36, 0.18), ncols=2, fontsize=7)
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

    If a weight does not settle, a bar spans its quartiles, with the marker in the middle of the bar. The markers of a
    smaller p lie above those of a larger one, and are smaller, since several curves cross at one place.
    """
    last = rows[rows["step"] == rows["step"].max()]
    for k, ((p, part), color, marker) in enumerate(zip(last.groupby("p"), style.PALETTE, style.MARKERS, strict=False)):
        part = part.sort_values("target")
        axes.plot(part["target"], part["fixed_point"], color=color, alpha=0.5, linewidth=1, zorder=2 - 0.1 * k)
        ends = part["weight"].fillna((part["low"] + part["high"]) / 2)
        bars = [ends - part["low"], part["high"] - ends]
        bars = [bar.where(part["weight"].isna(), 0.0) for bar in bars]
        look = {"fmt": marker, "color": color, "mfc": "none", "ms": 3.5 + 0.7 * k, "zorder": 4 - 0.1 * k}
        axes.errorbar(part["target"], ends, bars, label=f"p = {p:g}", **look)
    axes.set_xlabel("target: where the loss is least")


def _over_strength(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw for each start the end of the path against the strength, the fixed points, and the objective's minimum."""
    least = rows.drop_duplicates("s").sort_values("s")
    axes.plot(least["s"], least["minimum"], color="0.8", linewidth=5, label="exact minimum", zorder=1)
    for (start, part), color, marker, line in zip(
        rows.groupby("start"), style.PALETTE, style.MARKERS, style.LINES[1:], strict=False
    ):
        part = part.sort_values("s")
        axes.plot(part["s"], part["fixed_point"], line, color=color, linewidth=1)
        axes.plot(part["s"], part["weight"], marker, color=color, mfc="none", ms=4.5, label=f"from {start:g}")
    axes.set_xscale("log")
    axes.set_xlabel("strength s")
    axes.set_ylabel("w at the end")
    axes.legend(loc="lower left", fontsize=7.5)


def _critical(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw for each p the critical strength against the start, with its exponent, and a line for gradient flow."""
    for (p, part), color, marker in zip(rows.groupby("p"), style.PALETTE, style.MARKERS, strict=False):
        part = part.sort_values("start")
        axes.plot(part["start"], part["flow"], "--", color=color, linewidth=1)
        label = f"p = {p:g}: exponent {part['exponent'].iloc[0]:.3f}"
        axes.plot(part["start"], part["critical"], marker, color=color, mfc="none", ms=4.5, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("start")
    axes.set_ylabel("critical strength s")
    axes.legend(loc="lower right", fontsize=7.5)
