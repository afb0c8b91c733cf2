"""The plot of P4 (early and scale-invariant weight decay, arXiv 2012.13841) about generalization: fig12.

Called by ``figures``, which reads its name in ``configs/figure``. A plot is a function of the table of the runs and of
the declarations of the panels. It returns the picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from wdlab.analysis import correlation, selection
from wdlab.analysis.style import PALETTE, Look

STRENGTH, OVER_TIME, RATE, LOSS = "regularizer.strength", "regularizer.over_time", "optimizer.lr", "train/loss"
CELLS = ["dataset.label_noise", "dataset.train_size"]
ANGLE, OF_PREDICTED = "scale_invariant/angular_update", "of_predicted"
UPDATES = (  # columns of the table over steps, with their labels
    (ANGLE, "angle of an update (radians)"),
    ("update/relative", "length of an update over |w|"),
)
TARGETS = (("gap/loss", "gap in loss"), ("gap/error", "gap in error"), ("test/error", "test error"))
# The looks of decay over time, from the strongest to the weakest.
LOOKS = {
    "constant": (Look(PALETTE[0], "-", "o", "decay throughout"), Look(PALETTE[5], ":", "v", "weak decay throughout")),
    "early": (Look(PALETTE[1], "-.", "D", "early decay"),),
    "late": (Look(PALETTE[2], (0, (6, 1.5)), "s", "late decay"),),
}
NEVER = Look(PALETTE[4], "-", "x", "no decay")
RAW, INVARIANT = PALETTE[0], PALETTE[1]
METRICS = (  # columns, with their labels and colours, from top to bottom; a raw metric is above its invariant form
    (LOSS, "train loss", "black"),
    ("norm/weight_l2", "|w|", RAW),
    ("scale_invariant/log_effective_lr", "effective lr", INVARIANT),
    ("gradient/full_norm", "|g|", RAW),
    ("scale_invariant/full_gradient_times_weight", "|g| |w|", INVARIANT),
    ("sharpness/top_eigenvalue", "sharpness", RAW),
    ("scale_invariant/sharpness", "invariant sharpness", INVARIANT),
    ("sharpness/trace", "Hessian trace", RAW),
    ("scale_invariant/trace", "invariant trace", INVARIANT),
)
PAIRS = 4  # of a raw and an invariant metric


class _Kind(NamedTuple):
    """A kind of rank correlation: its rule, its marker and filling, its place within a line, and its label."""

    rule: Mapping[str, Any]
    marker: str
    filled: bool
    place: float
    label: str


KINDS = (
    _Kind({}, "o", False, -0.25, "over all runs"),
    _Kind({"within": CELLS}, "s", True, 0.0, "within cells"),
    _Kind({"within": CELLS, "given": LOSS}, "D", False, 0.25, "within cells, at a fixed train loss"),
)


def fig12(table: pd.DataFrame, panels: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw updates over steps, and how well each metric ranks the runs by their generalization; a row for each panel.

    Args:
        table: the rows of the runs.
        panels: the declarations of the panels. Each has ``update``: a filter for the runs whose updates are drawn.
    """
    columns = len(UPDATES) + len(TARGETS)
    figure, grid = plt.subplots(
        len(panels),
        columns,
        figsize=(13, 3.9 * len(panels) + 0.5),
        squeeze=False,
        layout="constrained",
        width_ratios=[1.3] * len(UPDATES) + [1.0] * len(TARGETS),
    )
    shown: dict[str, Any] = {}
    for row_of_axes, panel in zip(grid, panels, strict=True):
        rows = table[table["panel"] == panel["panel"]]
        of_updates, of_ranks = row_of_axes[: len(UPDATES)], row_of_axes[len(UPDATES) :]
        arms = list(_arms(selection.select(rows, panel["update"])))
        for axes, (metric, label) in zip(of_updates, UPDATES, strict=True):
            for look, of_arm in arms:
                _over_steps(axes, of_arm, look, metric)
            _mark_changes(axes, arms)
            axes.set(yscale="log", xlabel="step", ylabel=label)
        shown |= dict(zip(*reversed(of_updates[0].get_legend_handles_labels()), strict=True))
        of_updates[0].set_title(f"{panel['title']}\n{_cell(panel['update'], arms)}", loc="left")
        ends = selection.last_lines(rows)
        for axes, (target, label) in zip(of_ranks, TARGETS, strict=True):
            _ranks(axes, ends, target)
            axes.set_title(label)
        largest = max(np.abs(line.get_xdata()).max() for axes in of_ranks for line in axes.lines)
        for axes in of_ranks:
            axes.set_xlim(-largest - 0.05, largest + 0.05)
            axes.tick_params(labelleft=axes is of_ranks[0])
    _legends(figure, shown)
    return figure


def _cell(update: Mapping[str, float], arms: Sequence[tuple[Look, pd.DataFrame]]) -> str:
    """Return the settings of the runs whose updates are drawn, as text."""
    noise, size = (update[column] for column in CELLS)
    strengths = sorted({strength for _, rows in arms for strength in rows[STRENGTH]} - {0})
    weak = f" (weak: {strengths[0]:g})" if len(strengths) > 1 else ""
    return f"{size:,} images, {100 * noise:g} % wrong labels, a = {update[RATE]:g}, s = {strengths[-1]:g}{weak}"


def _arms(rows: pd.DataFrame) -> Iterator[tuple[Look, pd.DataFrame]]:
    """Yield the look and the rows of each decay over time and strength, those without decay first."""
    never = rows[STRENGTH] == 0
    if never.any():
        yield NEVER, rows[never]
    for over_time, looks in LOOKS.items():
        part = rows[~never & (rows[OVER_TIME] == over_time)]
        strengths = np.sort(part[STRENGTH].unique())[::-1]
        for look, strength in zip(looks, strengths, strict=False):
            yield look, part[part[STRENGTH] == strength]


def _over_steps(axes: Axes, rows: pd.DataFrame, look: Look, metric: str) -> None:
    """Draw a metric of an arm over steps: each seed, the median, and with constant decay the predicted rotation."""
    rows = rows[rows[metric].notna()]  # before the first update there is none
    by_seed = rows.pivot_table(index="step", columns="seed", values=metric)
    axes.plot(by_seed.index, by_seed, color=look.color, linewidth=0.4, alpha=0.3)
    median = by_seed.median(axis=1, skipna=False)
    drawn = {"color": look.color, "linestyle": look.line, "marker": look.marker, "ms": 4, "mfc": "white"}
    axes.plot(median.index, median, **drawn, linewidth=1.6, label=look.label)
    if (rows[OVER_TIME] == "constant").all() and metric == ANGLE:
        predicted = _predicted(rows)
        drawn = {"color": look.color, "linestyle": "--", "linewidth": 1.0, "drawstyle": "steps-pre"}
        axes.plot(predicted.index, predicted.where(predicted > 0), **drawn)


def _predicted(rows: pd.DataFrame) -> pd.Series:
    """Return the rotation that is predicted for an arm, by step; 0 without decay."""
    of_run = rows[(rows["run"] == rows["run"].iloc[0]) & rows[OF_PREDICTED].notna()].set_index("step").sort_index()
    return of_run[ANGLE] / of_run[OF_PREDICTED]


def _mark_changes(axes: Axes, arms: Sequence[tuple[Look, pd.DataFrame]]) -> None:
    """Draw a vertical line at the last log line before a change of learning rate or strength in any of the arms."""
    for _, rows in arms:
        predicted = _predicted(rows)
        changes = predicted.diff(-1).abs() > 1e-3 * predicted.max()
        for step in predicted.index[changes]:
            axes.axvline(step, color="0.6", linewidth=0.8, linestyle=":", zorder=0)


def _ranks(axes: Axes, ends: pd.DataFrame, target: str) -> None:
    """Draw the rank correlation of each metric with a target: mean over seeds, and bootstrap interval over settings.

    Args:
        axes: the axes to draw in.
        ends: the last rows of the runs of a panel.
        target: the column that the metrics are to rank.
    """
    for height, (metric, _, color) in enumerate(METRICS):
        for kind in KINDS:
            rule = dict(kind.rule, between=[metric, target])
            if metric == rule.get("given"):
                continue
            mean = np.mean(list(correlation.of_seeds(ends, rule).values()))
            low, high = correlation.interval(correlation.resampled_settings(ends, rule))
            y = height + kind.place
            axes.plot([low, high], [y, y], color=color, linewidth=1.0, solid_capstyle="butt")
            axes.plot(mean, y, kind.marker, color=color, ms=4.5, mfc=color if kind.filled else "white", zorder=3)
    for pair in range(0, PAIRS, 2):
        axes.axhspan(2 * pair + 0.5, 2 * pair + 2.5, color="0.95", zorder=0)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(METRICS)), [label for _, label, _ in METRICS])
    axes.set_ylim(len(METRICS) - 0.5, -0.5)
    axes.set_xticks([-0.5, 0, 0.5])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("Kendall's tau")


def _legends(figure: Figure, arms: Mapping[str, Any]) -> None:
    """Add one legend for the arms of the left axes and one for the kinds of correlation, above the axes."""
    dashed = Line2D([], [], color="0.3", linestyle="--", linewidth=1.0)
    figure.legend(
        [*arms.values(), dashed], [*arms, "steady state"], loc="outside upper left", ncols=3, handlelength=2.4
    )
    kinds = [
        Line2D([], [], color="0.3", marker=kind.marker, mfc="0.3" if kind.filled else "white", ms=4.5, linewidth=1.0)
        for kind in KINDS
    ]
    colours = [Line2D([], [], color=color, linewidth=3) for color in (RAW, INVARIANT)]
    figure.legend(
        [*kinds, *colours],
        [*(kind.label for kind in KINDS), "raw metric", "scale-invariant metric"],
        loc="outside upper right",
        ncols=3,
        handlelength=2.4,
    )
