"""The plot of fig4: a single weight under the penalty of P2 (p-norm weight decay, arXiv 2404.10824).

Called by ``figures``, which reads its name in ``configs/figure``.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wdlab.analysis import style

FORM_TITLES = {"lp": "in the gradient", "pnorm": "decoupled (pWD)"}
STEPS_SHOWN = 80  # of a path; later the weights do not move any more
FINE = 1000  # points of an exact curve


def fig4(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw paths of one weight, where they end, and for P2's quartic loss the end over strength and start.

    In rows 1 and 2 the penalty is in the gradient on the left, and decoupled on the right. Lines in rows 2 and 3 are
    exact. If a weight does not settle, a bar spans the middle half of its values in the last quarter of its path.
    """
    figure, axes = plt.subplots(3, 2, figsize=(7.2, 8.2), layout="constrained")
    titles = {panel["panel"]: panel["title"] for panel in panels}
    (strength,) = [panel["simulate"]["strength"] for panel in panels if panel["panel"] == "shrinkage"]
    of_panel = dict(list(table.groupby("panel")))
    for column, (form, name) in enumerate(FORM_TITLES.items()):
        paths, ends = (of_panel[panel][of_panel[panel]["regularizer"] == form] for panel in ("paths", "shrinkage"))
        _paths(axes[0, column], paths)
        _ends(axes[1, column], ends, strength)
        for row, panel in enumerate(("paths", "shrinkage")):
            axes[row, column].set_title(f"{titles[panel]}: {name}")
            axes[row, 1].sharey(axes[row, 0])
    _over_strength(axes[2, 0], of_panel["end_points"])
    _critical(axes[2, 1], of_panel["critical"])
    for column, panel in enumerate(("end_points", "critical")):
        axes[2, column].set_title(titles[panel])
    axes[0, 0].set_ylabel("weight w")
    axes[1, 0].set_ylabel("w at the end")
    axes[0, 1].legend(loc=(0.3, 0.14), ncols=2, fontsize=7)
    axes[1, 1].legend(loc="upper left", fontsize=7.5)
    return figure


def _paths(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the weight by step, one line for each start, and the limits of gradient flow from these starts."""
    for k, value in enumerate(rows["fixed_point"].unique()):
        axes.axhline(value, color="0.75", linewidth=4, label="exact limits" if k == 0 else None)
    for (start, path), color, line in zip(rows.groupby("start"), 2 * style.PALETTE, 3 * style.LINES, strict=False):
        axes.plot(path["step"], path["weight"], line, color=color, linewidth=1.1, label=f"from {start:g}")
    axes.set_xlim(-2, STEPS_SHOWN)
    axes.set_xlabel("step")


def _ends(axes: Axes, rows: pd.DataFrame, strength: float) -> None:
    """Draw for each p the end of each path against its target (the minimum of the loss), and the exact end as a line.

    If a weight does not settle, a bar spans its quartiles, with the marker in the middle of the bar. The markers of a
    smaller p lie above those of a larger one, and are smaller, since several curves cross at one place.
    """
    last = rows[rows["step"] == rows["step"].max()]
    for k, ((p, part), color, marker) in enumerate(zip(last.groupby("p"), style.PALETTE, style.MARKERS, strict=False)):
        part = part.sort_values("target")
        exact = _exact_ends(p, strength, part["target"].max())
        axes.plot(*exact, color=color, alpha=0.5, linewidth=1, zorder=2 - 0.1 * k)
        ends = part["weight"].fillna((part["low"] + part["high"]) / 2)
        moving = part["weight"].isna()
        bars = [(ends - part["low"])[moving], (part["high"] - ends)[moving]]
        axes.errorbar(part["target"][moving], ends[moving], bars, fmt="none", color=color, zorder=4 - 0.1 * k)
        look = {"color": color, "mfc": "none", "ms": 3.5 + 0.7 * k, "zorder": 4 - 0.1 * k}
        axes.plot(part["target"], ends, marker, label=f"p = {p:g}", **look)
    axes.set_xlabel("target: where the loss is least")


def _exact_ends(p: float, strength: float, largest: float) -> tuple[np.ndarray, np.ndarray]:
    """Return targets up to the largest, and the limit of gradient flow from each, on ``(w - target)^2 / 2 + s |w|^p``.

    A weight w > 0 is a fixed point for the target ``w + s p w^(p-1)``. For p < 1 this is least at a weight above zero,
    and at the targets below, the limit is zero.
    """
    least = (strength * p * (1 - p)) ** (1 / (2 - p)) if p < 1 else 0.0
    weights = np.linspace(least, largest, FINE)
    targets = weights + strength * p * weights ** (p - 1)
    inside = targets <= largest
    return np.concatenate(([0.0, targets[0]], targets[inside])), np.concatenate(([0.0, 0.0], weights[inside]))


def _over_strength(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw for each start the end of the path against the strength, the exact end, and the objective's minimum."""
    (p,) = rows["p"].unique()
    weights = np.linspace(1, _peak(p), FINE)
    strengths = _balance(p, weights)
    least = (weights - 1) ** 4 / 4 + strengths / p * weights**p < 1 / 4
    axes.plot([], [], color="0.8", linewidth=5, label="least loss + penalty")
    curves = [(least, {"color": "0.8", "linewidth": 5, "zorder": 1})]
    for (start, part), color, marker in zip(rows.groupby("start"), style.PALETTE, style.MARKERS, strict=False):
        curves.append((strengths <= _critical_strength(p, start), {"color": color, "linewidth": 1}))
        look = {"color": color, "mfc": "none", "ms": 4.5, "label": f"from {start:g}"}
        axes.plot(part["s"], part["weight"], marker, **look)
    for alive, look in curves:
        inside = alive & (strengths >= rows["s"].min())
        jump = strengths[inside].max()
        axes.plot([*strengths[inside], jump, rows["s"].max()], [*weights[inside], 0, 0], **look)
    axes.set_xscale("log")
    axes.set_xlabel("strength s")
    axes.set_ylabel("w at the end")
    axes.legend(loc="upper right", fontsize=7.5)


def _critical(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw for each p the critical strength against the start, with its exponent, and a line for gradient flow."""
    for (p, part), color, marker in zip(rows.groupby("p"), style.PALETTE, style.MARKERS, strict=False):
        starts = np.geomspace(part["start"].min(), part["start"].max(), FINE)
        axes.plot(starts, _critical_strength(p, starts), color=color, linewidth=1)
        label = f"p = {p:g}: exponent {part['exponent'].iloc[0]:.3f}"
        axes.plot(part["start"], part["critical"], marker, color=color, mfc="none", ms=4.5, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("start")
    axes.set_ylabel("critical strength s")
    axes.legend(loc="lower right", fontsize=7.5)


def _balance(p: float, weights: np.ndarray) -> np.ndarray:
    """Return the strength at which each weight is a fixed point of P2's quartic loss: ``(1 - w)^3 w^(1-p)``."""
    return (1 - weights) ** 3 * weights ** (1 - p)


def _peak(p: float) -> float:
    """Return the weight at which ``_balance`` is largest."""
    return (1 - p) / (4 - p)


def _critical_strength(p: float, starts: np.ndarray) -> np.ndarray:
    """Return the strength above which gradient flow from each start ends at zero."""
    return _balance(p, np.minimum(starts, _peak(p)))
