"""The figures of P2 (p-norm weight decay, arXiv 2404.10824). Called by ``figures`` through their names in
``configs/figure``."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wdlab.analysis import style

FORMS = {"lp": "in the gradient", "pnorm": "decoupled (pWD)"}
TAIL = 0.75  # of a path: what comes behind it counts as its end
MARKERS = "osD^v"


def fig4(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Paths of one weight (upper row) and where it ends against the loss's minimum (lower row); gradient and decoupled.

    Thin lines: exact fixed points. Bars reach over the last quarter of a path: long where a weight does not settle.
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
    axes[1, 1].legend(loc="upper left", fontsize=7.5)
    return figure


def _paths(axes: Axes, rows: pd.DataFrame) -> None:
    """The weight by step, a line per start, with the fixed points they should end at."""
    for value in rows["fixed_point"].unique():
        axes.axhline(value, color="0.6", linewidth=1)
    for (start, path), color, line in zip(rows.groupby("start"), 2 * style.PALETTE, 3 * style.LINES, strict=False):
        axes.plot(path["step"], path["weight"], line, color=color, linewidth=1.1, label=f"from {start:g}")
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlabel("step")
    axes.legend(fontsize=7, ncols=2)


def _ends(axes: Axes, rows: pd.DataFrame) -> None:
    """The weight's mean and range at the end of its path against its target, a curve of fixed points per p."""
    settled = rows[rows["step"] >= TAIL * rows["step"].max()]
    for (p, part), color, marker in zip(settled.groupby("p"), style.PALETTE, MARKERS, strict=False):
        by_target = part.groupby("target")["weight"].agg(["mean", "min", "max"])
        exact = part.groupby("target")["fixed_point"].first()
        axes.plot(exact.index, exact, color=color, alpha=0.5, linewidth=1)
        bars = np.maximum(0, [by_target["mean"] - by_target["min"], by_target["max"] - by_target["mean"]])
        axes.errorbar(
            by_target.index, by_target["mean"], bars, fmt=marker, color=color, mfc="white", ms=4.5, label=f"p = {p:g}"
        )
    axes.set_xlabel("target: where the loss is least")
