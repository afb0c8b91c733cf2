"""The plots of P3 (gradient-coherent strong regularization, arXiv 1811.08056).

Called by ``figures``, which reads their names in ``configs/figure``. A plot is a function of the table of the runs, the
table of the probes, and the declarations of the panels. It returns the picture.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatterSciNotation, NullLocator, StrMethodFormatter

from wdlab.analysis import selection
from wdlab.analysis.style import PALETTE, Look

STRENGTH, THRESHOLD = "regularizer.strength", "regularizer.over_time.threshold"
CONSTANT, PROJECTED = "constant", "projected"
FAILED = 0.15  # a test accuracy at or below this is that of a network that has learned nothing
LEAST_RING = 8  # diameter of the smallest ring, in points
LEARNS_LITTLE = 0.6  # below this accuracy an axis has its numbers at every ten percent
LEAST_ERROR = 0.005  # accuracies are drawn on a logarithmic scale of the error, which ends here
LOWEST, ROOM = 0.05, 0.06  # the lower end of an axis of accuracies, and the share of it that is left free at the top

# The look of each method, by the name of its change over time and the statistic of its gate.
LOOKS: dict[tuple[str, str | None], Look] = {
    (CONSTANT, None): Look(PALETTE[4], "-", "o", "constant"),
    ("delayed", None): Look(PALETTE[2], "--", "s", "delayed"),
    ("coherent", "running_mean"): Look(PALETTE[3], "-.", "^", "gate: cosine with the running mean"),
    ("coherent", "total_gradient"): Look(PALETTE[1], "-", "D", "gate: cosine with the total gradient"),
    ("coherent", "norm_ratio"): Look(PALETTE[5], ":", "v", "gate: ratio of norms"),
    (PROJECTED, None): Look(PALETTE[0], "--", "X", "projected: without what opposes the loss"),
}
# The looks of fig10, by the name of the penalty and its change over time.
FAMILIES = {
    "l1": (PALETTE[0], "o", "L1 in the gradient"),
    "pnorm_prox": (PALETTE[1], "D", "soft threshold"),
    "pnorm": (PALETTE[3], "s", "p = 0.8"),
    "magnitude_pruning": (PALETTE[4], "P", "magnitude pruning"),
}
OVER_TIME = {CONSTANT: "-", "delayed": "--", "coherent": ":"}
GRADIENT = "l1"  # the penalty without exact zeros, whose weights below one step are set to zero
COMPRESSIONS = (1, 2, 5, 10, 20, 50, 100)  # at which the x axis of fig10 has its numbers
BAND = "within two points of the best mean of all"
WITHIN = 0.02  # fig10's claims are read as far below the best mean of the two methods that they compare
JUDGED = "strength of the claims"

PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.3g} %")


def by_method(rows: pd.DataFrame) -> Iterator[tuple[Look, pd.DataFrame]]:
    """Yield the look and the rows of each method in some rows, in the order of ``LOOKS``."""
    changes = _over_time(rows)
    gates = rows.get("regularizer.over_time.coherence", pd.Series(None, index=rows.index, dtype=object))
    for (over_time, coherence), look in LOOKS.items():
        own_gate = gates.isna() if coherence is None else gates == coherence
        part = rows[(changes == over_time) & own_gate]
        if len(part):
            yield look, part


def _over_time(rows: pd.DataFrame) -> pd.Series:
    """Return the change over time of each row's penalty, or ``projected`` (``regularizer.coherence=project``)."""
    return rows["regularizer.over_time"].where(rows["regularizer"] != "coherent", PROJECTED)


def fig8(table: pd.DataFrame, measured: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw test accuracy against strength, against the mean strength in force, and against the threshold of a gate.

    Args:
        table: the rows of the runs; not used.
        measured: the probe's table, see ``studies.strong.in_force``.
        panels: the declarations of the panels. Each is a row of axes, with a vertical line at the strength ``judged``,
            or with ``beside`` the third column of the row of the panel that it names, where the share of the steps in
            which a gate is open is below the accuracy.
    """
    rows_of_axes = [panel for panel in panels if "beside" not in panel]
    thresholds = {panel["beside"]: panel for panel in panels if "beside" in panel}
    columns, height = 2 + bool(thresholds), 3.1 if thresholds else 2.6
    figure = plt.figure(figsize=(3.5 * columns, height * len(rows_of_axes) + 0.7), layout="constrained")
    grid = figure.add_gridspec(len(rows_of_axes), columns)
    for place, panel in enumerate(rows_of_axes):
        rows = measured[measured["panel"] == panel["panel"]]
        left = figure.add_subplot(grid[place, 0])
        middle = figure.add_subplot(grid[place, 1], sharey=left)
        _by_strength(left, rows)
        if "judged" in panel:
            left.axvline(panel["judged"], color="0.4", linewidth=0.9, linestyle=(0, (4, 2)), zorder=1, label=JUDGED)
        _by_mean_strength(middle, rows)
        _accuracy_axis(left)
        left.set_title(panel["title"])
        middle.tick_params(labelleft=False)
        if panel["panel"] in thresholds:
            beside = thresholds[panel["panel"]]
            above, below = grid[place, 2].subgridspec(2, 1, height_ratios=(2, 1)).subplots(sharex=True)
            _by_threshold(above, below, measured[measured["panel"] == beside["panel"]], rows)
            above.set_title(beside["title"])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, handlelength=3.5)
    return figure


def fig10(table: pd.DataFrame, measured: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw test accuracy against compression: left L1 in the gradient, right the methods with exact zeros.

    Magnitude pruning is in both. The band reaches from the best mean of all methods to two points below it.

    Args:
        table: the rows of the runs; not used.
        measured: the probe's table, see ``studies.strong.compressed``.
        panels: the declarations of the panels, one row of axes each.
    """
    size = (8.4, 3.2 * len(panels) + 0.9)
    figure, grid = plt.subplots(
        len(panels), 2, figsize=size, sharex="row", sharey="row", squeeze=False, layout="constrained"
    )
    shown: dict[str, Any] = {}
    for axes, panel in zip(grid, panels, strict=True):
        rows = measured[measured["panel"] == panel["panel"]]
        rows = rows[rows["cut"] == np.where(rows["regularizer"] == GRADIENT, "one_step", "exact")]
        along = rows[STRENGTH].where(rows["regularizer"] != "magnitude_pruning", rows.get("regularizer.zeros"))
        rows = rows.assign(along=along)
        left, right = rows["regularizer"] == GRADIENT, rows["regularizer"].isin(["pnorm_prox", "pnorm"])
        pruned = rows["regularizer"] == "magnitude_pruning"
        best = rows.groupby(["regularizer", "regularizer.over_time", "along"])["test_accuracy"].mean().max()
        for one, group in zip(axes, (left | pruned, right | pruned), strict=True):
            one.axhspan(best - WITHIN, best, color="0.92", zorder=0, label=BAND)
            _by_compression(one, rows[group])
            one.set_xscale("log")
            one.xaxis.set_major_locator(FixedLocator(COMPRESSIONS))
            one.xaxis.set_minor_locator(NullLocator())
            one.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            one.set_xlabel("compression (bytes dense / sparse)")
            shown |= dict(zip(*reversed(one.get_legend_handles_labels()), strict=True))
        axes[0].set_title(f"{panel['title']}: L1 in the gradient")
        axes[1].set_title("exact zeros")
        _accuracy_axis(axes[0])
    for last in (FAMILIES["magnitude_pruning"][2], BAND):
        shown[last] = shown.pop(last)
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=3, handlelength=3.5)
    return figure


def _by_compression(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw accuracy against compression: each seed as a marker, medians joined along strengths or shares of zeros.

    A line ends where a gate makes the compression fall although the strength grows, and before a network that has
    learned nothing, since nothing was measured between that and the last one that has.
    """
    for name, (color, marker, family) in FAMILIES.items():
        for over_time, line in OVER_TIME.items():
            part = rows[(rows["regularizer"] == name) & (rows["regularizer.over_time"] == over_time)]
            if part.empty:
                continue
            axes.plot(part["compression"], part["test_accuracy"], marker, color=color, ms=2, alpha=0.3, linewidth=0)
            medians = _medians(part, "along", "compression")
            failed = medians["test_accuracy"] <= FAILED
            gaps = (medians["compression"].diff() < 0) | (failed != failed.shift(fill_value=False))
            look = Look(color, line, marker, family)
            label = family if name == "magnitude_pruning" else f"{family}, {'gated' if line == ':' else over_time}"
            filled = {"mfc": {CONSTANT: "white", "coherent": "0.75"}.get(over_time, color)}
            _joined(axes, medians, gaps, **_drawn(look) | filled, label=label)


def _medians(rows: pd.DataFrame, by: str, x: str) -> pd.DataFrame:
    """Return the medians over seeds of a column and of the test accuracy, for each value of ``by``."""
    return selection.summarize_over_seeds(rows, by, [x, "test_accuracy"]).xs("median", axis=1, level=1)


def _joined(axes: Axes, points: pd.DataFrame, gaps: pd.Series, label: str | None = None, **drawn: Any) -> None:
    """Draw the second column of a table over the first, joined but for a gap before each point where one is marked."""
    for number, (_, piece) in enumerate(points.groupby(gaps.to_numpy().cumsum())):
        axes.plot(piece.iloc[:, 0], piece.iloc[:, 1], **drawn, label=None if number else label)


def _accuracy_axis(axes: Axes) -> None:
    """Draw test accuracies on a logarithmic scale of the error, so that 1 % is far from 2 % as 10 % is from 20 %."""
    forward = lambda accuracy: -np.log(np.maximum(1 - np.asarray(accuracy), LEAST_ERROR))  # noqa: E731
    backward = lambda height: 1 - np.exp(-np.asarray(height))  # noqa: E731
    axes.set_yscale("function", functions=(forward, backward))
    highest = max(one.dataLim.y1 for one in axes.get_shared_y_axes().get_siblings(axes))
    axes.set_ylim(LOWEST, backward((1 + ROOM) * forward(highest) - ROOM * forward(LOWEST)))
    high = [0.1, 0.5, 0.8, 0.9, 0.95, 0.97 if highest < 0.98 else 0.98, 0.99]
    numbers = [0.1, 0.2, 0.3, 0.4, 0.5] if highest < LEARNS_LITTLE else high
    axes.yaxis.set_major_locator(FixedLocator(numbers))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_ylabel("test accuracy")


def _by_strength(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw accuracy against strength: each seed, medians, and a ring at the lowest mean validation loss.

    The strengths at which all runs with a constant penalty have failed are grey. Rings have several sizes, so that all
    are seen where they are at the same point. A line ends where a gate makes the mean strength fall.
    """
    ring = {"marker": "o", "mfc": "none", "mew": 1, "linestyle": "none", "zorder": 4}
    for number, (look, part) in enumerate(by_method(rows)):
        by_seed = part.pivot_table(index=STRENGTH, columns="seed", values="test_accuracy")
        _lines(axes, by_seed, look, part.groupby(STRENGTH)["mean_strength"].median().diff() < 0)
        best = part.groupby(STRENGTH)["val_loss"].mean().idxmin()
        axes.plot(best, by_seed.median(axis=1)[best], **ring, ms=LEAST_RING + 2 * number, mec=look.color)
    axes.plot([], [], **ring, ms=LEAST_RING, mec="0.3", label="lowest mean validation loss")
    failed = _failed_strengths(rows)
    if len(failed):
        label = "the constant penalty is at chance in every seed"
        axes.axvspan(failed.min(), failed.max(), color="0.93", linewidth=0, zorder=0, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("strength s")


def _failed_strengths(rows: pd.DataFrame) -> np.ndarray:
    """Return the strengths from which on all runs with a constant penalty are at chance."""
    constant = rows[_over_time(rows) == CONSTANT]
    best = constant.groupby(STRENGTH)["test_accuracy"].max().sort_index()
    learned = best.index[best > FAILED]
    return best.index[best.index > learned.max()].to_numpy() if len(learned) else best.index.to_numpy()


def _by_mean_strength(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw accuracy against the mean strength in force: each seed as a marker, medians joined along the strengths.

    A line ends where a gate makes the mean strength fall although the strength grows. Runs in which the penalty was in
    force in no log line are left of a dotted line, over a zero.
    """
    least = rows.loc[rows["mean_strength"] > 0, "mean_strength"].min()
    for look, part in by_method(rows):
        seen = part.assign(x=part["mean_strength"].clip(lower=least / 4))
        axes.plot(seen["x"], seen["test_accuracy"], look.marker, color=look.color, ms=2.5, alpha=0.45, linewidth=0)
        medians = _medians(seen, STRENGTH, "x")
        _joined(axes, medians, medians["x"].diff() < 0, **_drawn(look))
    axes.set_xscale("log")
    if (rows["mean_strength"] == 0).any():
        axes.axvline(least / 2, color="0.4", linewidth=0.8, linestyle=":")
        lowest, highest = np.ceil(np.log10(least)), np.floor(np.log10(rows["mean_strength"].max()))
        decades = 10.0 ** np.arange(lowest, highest + 1)
        powers = LogFormatterSciNotation()
        axes.xaxis.set_major_locator(FixedLocator([least / 4, *decades]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: powers(x) if x >= least else "0"))
    axes.set_xlabel("mean strength in force")


def _by_threshold(above: Axes, below: Axes, rows: pd.DataFrame, others: pd.DataFrame) -> None:
    """Draw accuracy and the share of steps in force against the threshold of each gate.

    Args:
        above: the axes for the accuracy.
        below: the axes for the share of steps, of which the medians are drawn.
        rows: the rows of the panel.
        others: the rows of the other columns. The thresholds that the gates have there are filled.
    """
    for look, part in by_method(rows):
        used = next((of_method[THRESHOLD].iloc[0] for one, of_method in by_method(others) if one == look), None)
        by_seed = part.pivot_table(index=THRESHOLD, columns="seed", values="test_accuracy")
        _lines(above, by_seed, look)
        shares = part.groupby(THRESHOLD)["share_in_force"].median()
        below.plot(shares, **_drawn(look))
        for axes, medians in ((above, by_seed.median(axis=1)), (below, shares)):
            filled = medians[medians.index == used]
            axes.plot(filled, **_drawn(look) | {"mfc": look.color, "ms": 6, "linestyle": "none"})
    _accuracy_axis(above)
    below.set_ylim(-0.08, 1.08)
    below.yaxis.set_major_formatter(PERCENT)
    below.set_ylabel("steps in force")
    below.set_xscale("log")
    below.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    below.set_xlabel("threshold")


def _lines(axes: Axes, by_seed: pd.DataFrame, look: Look, gaps: pd.Series | None = None) -> None:
    """Draw the columns of a table as thin lines, and medians as a thick one, with a gap before each marked row."""
    gaps = pd.Series(False, index=by_seed.index) if gaps is None else gaps
    for _, piece in by_seed.groupby(gaps.cumsum()):
        axes.plot(piece, color=look.color, linestyle=look.line, linewidth=0.6, alpha=0.6)
    _joined(axes, by_seed.median(axis=1).reset_index(), gaps, **_drawn(look), label=look.label)


def _drawn(look: Look) -> dict[str, Any]:
    """Return matplotlib's options for the medians of a method.

    Those of the constant penalty are narrow, small and on top, so that other methods are seen where they coincide.
    """
    if look == LOOKS[CONSTANT, None]:
        return {"color": look.color, "marker": look.marker, "ms": 3, "linewidth": 1.1, "zorder": 3.5}
    return {
        "color": look.color,
        "linestyle": look.line,
        "marker": look.marker,
        "ms": 4,
        "mfc": "white",
        "linewidth": 1.6,
        "path_effects": [withStroke(linewidth=2.6, foreground="white")],
        "zorder": 3,
    }
