"""The plot of the steady state of weight decay on normalized layers: study2 (arXiv 2506.02285 and 2305.17212).

Called by ``figures``, which reads the name in ``configs/figure``. A plot is a function of the table of the runs and of
the declarations of the panels. It returns the picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

from wdlab.analysis.style import MARKERS, PALETTE, Look

RATIO, STEADY, ROTATION = "gradient/over_weights", "steady", "scale_invariant/rotation_over_predicted"
LR, STRENGTH, OVER_TIME = "optimizer.lr", "regularizer.strength", "regularizer.over_time"
AFTER = 0.5  # share of a run after which its log lines are averaged, as in the claims
WITHIN = {RATIO: 1.2, ROTATION: 1.1}  # factors within which a claim counts two numbers as equal


class _Arm(NamedTuple):
    """Runs that are drawn as one curve: their settings, and the look of the curve."""

    where: Mapping[str, Any]
    look: Look


FALLING = (  # the same learning rate and strength at the start
    _Arm({"lr_schedule": "constant"}, Look(PALETTE[4], "-", "", "constant learning rate")),
    _Arm({"lr_schedule": "cosine", OVER_TIME: "constant"}, Look(PALETTE[1], "--", "", "falling learning rate")),
    _Arm({"lr_schedule": "cosine", OVER_TIME: "corrected"}, Look(PALETTE[0], "-.", "", "falling, corrected decay")),
)
LOOKS_OF_ROTATION = (
    Look(PALETTE[4], "-", "", "SGD"),
    Look(PALETTE[1], "--", "", "SGD, momentum 0.9"),
    Look(PALETTE[0], "-.", "", "AdamW, a s = {rate:g}"),
    Look(PALETTE[2], ":", "", "AdamW, a s = {rate:g}"),
)


def study2(table: pd.DataFrame, panels: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw gradients over weights against the steady state, at one and at a falling rate, and the rotation; by panel.

    Args:
        table: the rows of the runs.
        panels: the declarations of the panels. Each has ``falls``: learning rate and strength of the runs of which some
            have a learning rate that falls.
    """
    size = (12, 3.6 * len(panels) + 0.3)
    figure, grid = plt.subplots(len(panels), 3, figsize=size, squeeze=False, layout="constrained")
    for axes, panel in zip(grid, panels, strict=True):
        rows = table[(table["panel"] == panel["panel"]) & table[RATIO].notna()]
        of_sgd = rows[_is_plain(rows)]
        _against_prediction(axes[0], of_sgd[of_sgd["lr_schedule"] == "constant"])
        axes[0].set_title(panel["title"], loc="left")
        _while_it_falls(axes[1], _select(of_sgd, panel["falls"]))
        _rotation(axes[2], rows, panel["falls"])
    return figure


def _is_plain(rows: pd.DataFrame) -> pd.Series:
    """Return True for the rows of SGD without momentum."""
    return (rows["optimizer"] == "sgd") & (rows["optimizer.momentum"] == 0)


def _select(rows: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows


def late_mean(rows: pd.DataFrame, metric: str) -> pd.Series:
    """Return the geometric mean of a metric of each run over the log lines of its second half, by the run's name."""
    late = rows[rows["step"] > AFTER * rows["step"].max()]
    return np.exp(np.log(late[metric]).groupby(late["run"]).mean())


def _against_prediction(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the ratio of gradient and weights of each run against that of the steady state, by learning rate."""
    for (lr, of_rate), color, marker in zip(rows.groupby(LR), PALETTE, MARKERS, strict=False):
        at = of_rate.groupby("run")[STEADY].first()
        axes.plot(at, late_mean(of_rate, RATIO)[at.index], marker, color=color, ms=5, mfc="none", label=f"a = {lr:g}")
    ends = np.array([rows[STEADY].min() / 1.3, rows[STEADY].max() * 1.3])
    axes.plot(ends, ends, color="0.3", linewidth=0.8, zorder=0)
    axes.fill_between(ends, ends / WITHIN[RATIO], ends * WITHIN[RATIO], color="0.93", zorder=-1)
    axes.set(xscale="log", yscale="log", xlim=ends, xlabel="steady state, sqrt(2 s / a)", ylabel="|g| / |w|")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.5, 1]))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.legend(loc="upper left")


def _while_it_falls(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the ratio over steps for each arm of ``FALLING``, and its steady state as a thin line of the same look."""
    largest = 0.0
    for where, look in FALLING:
        part = _select(rows, where)
        median = _curve(axes, part, RATIO, look)
        largest = max(largest, median.max())
        steady = part.groupby("step")[STEADY].first()
        axes.plot(steady, color=look.color, linestyle=look.line, linewidth=0.8, alpha=0.8)
    axes.plot([], [], color="0.3", linewidth=0.8, label="its steady state")
    axes.set(xlabel="step", ylabel="|g| / |w|", ylim=(0, 1.35 * largest), title=_text(rows))
    axes.legend(loc="upper left")


def _text(rows: pd.DataFrame) -> str:
    """Return learning rate and strength of rows as text."""
    return f"SGD, a = {rows[LR].iloc[0]:g}, s = {rows[STRENGTH].iloc[0]:g}"


def _rotation(axes: Axes, rows: pd.DataFrame, falls: Mapping[str, Any]) -> None:
    """Draw the measured over the predicted rotation over steps, for runs with a constant learning rate."""
    rows = rows[rows["lr_schedule"] == "constant"]
    for part, look in zip(_optimizers(rows, falls), LOOKS_OF_ROTATION, strict=True):
        rate = float(f"{(part[LR] * part[STRENGTH]).iloc[0]:.3g}")
        _curve(axes, part, ROTATION, look._replace(label=look.label.format(rate=rate)))
    axes.axhline(1, color="0.3", linewidth=0.8, zorder=0)
    axes.axhspan(1 / WITHIN[ROTATION], WITHIN[ROTATION], color="0.93", zorder=-1)
    axes.set(xlabel="step", ylabel="turn in a step over predicted turn", title="rotation of the layers")
    axes.legend(loc="upper right")


def _optimizers(rows: pd.DataFrame, falls: Mapping[str, Any]) -> Iterator[pd.DataFrame]:
    """Yield the runs of SGD at one setting, of SGD with momentum, and of AdamW with strong and with weak decay."""
    is_sgd = rows["optimizer"] == "sgd"
    yield _select(rows[_is_plain(rows)], falls)
    yield rows[is_sgd & (rows["optimizer.momentum"] > 0)]
    strengths = sorted(rows.loc[~is_sgd, STRENGTH].unique(), reverse=True)
    for strength in strengths:
        yield rows[~is_sgd & (rows[STRENGTH] == strength)]


def _curve(axes: Axes, rows: pd.DataFrame, metric: str, look: Look) -> pd.Series:
    """Draw a metric over steps, each seed as a thin line and the median as a thick one, and return the median."""
    by_seed = rows.pivot_table(index="step", columns="seed", values=metric)
    axes.plot(by_seed.index, by_seed, color=look.color, linewidth=0.4, alpha=0.25)
    median = by_seed.median(axis=1, skipna=False)
    axes.plot(median, color=look.color, linestyle=look.line, linewidth=1.7, label=look.label)
    return median
