"""The plots of P2 (p-norm weight decay, arXiv 2404.10824) but for fig4, which is in ``one_weight``.

Called by ``figures``, which reads their names in ``configs/figure``. A plot is a function of the table of the runs, the
table of the probes if the figure has one, and the declarations of the panels. It returns the picture.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from wdlab.analysis import selection, style

# Distances, positive for an accuracy and negative for a loss. NEAR: the distance from AdamW that counts as near, as a
# number and in words. CLOSER: the largest distance from the best value of all methods that the closer view shows.
NEAR_ACCURACY, NEAR_NATS = (0.01, "a point"), (-0.05, "0.05 nats")
CLOSER_ACCURACY, CLOSER_NATS = 0.08, -0.5

REFERENCE = "decoupled"  # AdamW, drawn as a horizontal line
ALONG = ("regularizer.zeros", "regularizer.strength")  # a line joins the values of the first of these that varies
DENSE = 0.8  # a method all of whose runs have a larger share of weights that are not zero counts as without zeros
LEAST_SHARE = 1e-4  # lower end of fig6's y axes
STRIP = 0.08  # distance of the methods without zeros from each other, in powers of ten
DENSITIES = [high / 10**digits for digits in range(4) for high in (1, 0.5, 0.2)]  # at which the x axis has its numbers
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.3g} %")


def fig5(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw test accuracy against the share of weights that are not zero, for each method a line over its settings.

    A panel with ``reference`` has a further column, of the runs of P2's author. See :func:`_against_density`.
    """
    figure, grid = _against_density(table, panels, "test/accuracy", "test accuracy", NEAR_ACCURACY, CLOSER_ACCURACY)
    for axes in grid.flat:
        axes.yaxis.set_major_formatter(PERCENT)
    return figure


def fig7(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw test loss against the share of weights that are not zero, for each method a line over its settings.

    See :func:`_against_density`.
    """
    return _against_density(table, panels, "test/loss", "test loss (nats per character)", NEAR_NATS, CLOSER_NATS)[0]


def _against_density(
    table: pd.DataFrame,
    panels: list[Mapping[str, Any]],
    metric: str,
    label: str,
    near: tuple[float, str],
    closer: float,
) -> tuple[Figure, np.ndarray]:
    """Draw the last value of a metric against the share of weights that are not zero, one row per panel.

    Lines join the medians over seeds; each seed is a small pale marker. AdamW, which has no zeros, is a horizontal line
    at the median of its best setting on validation, with a band over the range of seeds. Other methods without zeros
    stand next to each other in a strip to the left of 100 %, without lines. A second column is a closer view; it is
    left out if it would show hardly less. The hatched region, near AdamW with more than 90 % zeros, is drawn where a
    run has as many.

    Args:
        table: the rows of the runs.
        panels: the declarations of the panels. In the optional ``reference`` are a ``title`` and ``runs``, a mapping
            each: ``regularizer``, ``p``, ``zeros`` and the metric.
        metric: a column of the table.
        label: the label of the y axis.
        near: how far below AdamW (above it, if negative) a value still counts as near, as a number and in words.
        closer: how far below the best value (above it, if negative) the closer view reaches at most; it is at most half
            of a panel's values.

    Returns:
        The figure, and an array of its axes (panels, columns).
    """
    ends = selection.last_lines(table)
    ends = ends.assign(density=1 - ends["sparsity/weights"])
    published = {panel["panel"]: _published(panel["reference"]) for panel in panels if "reference" in panel}
    looks = style.looks_by_method(pd.concat([ends, *published.values()]))
    values = ends.groupby("panel")[metric]
    zoom = bool((values.max() - values.min() > 2 * abs(closer)).any())
    shape = (len(panels), 1 + zoom + bool(published))
    size = (3.3 * shape[1] + (3 if shape[1] == 1 else 0.6), 3.4 * shape[0] + 0.6)
    figure, grid = plt.subplots(*shape, figsize=size, sharex="row", squeeze=False, layout="constrained")
    for axes, panel in zip(grid, panels, strict=True):
        rows = ends[ends["panel"] == panel["panel"]]
        own = axes[: 1 + zoom]
        for one in axes:
            one.set_xmargin(0.08)
        for one in own:
            _methods(one, rows, looks, metric, named=one is own[0])
        axes[0].set_title(panel["title"])
        axes[0].set_ylabel(label)
        if zoom:
            low, high = rows[metric].min(), rows[metric].max()
            reach = min(1, (high - low) / 2 / abs(closer)) * closer
            best = high if closer > 0 else low
            own[-1].set_ylim(*sorted((best - reach, best + reach / 10)))
            own[-1].set_title("closer")
        for one in axes[1 + zoom :]:
            if panel["panel"] in published:
                _author(one, published[panel["panel"]], looks, metric)
                one.set_title(panel["reference"]["title"])
            else:
                one.set_visible(False)
        _density_axis(axes[0])
        _near_adamw(own[-1], rows, metric, *near)
        for one in axes:
            one.set_xlabel("weights that are not zero")
            one.tick_params("x", labelsize=7.5)
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=1 + shape[1])
    return figure, grid


def _published(reference: Mapping[str, Any]) -> pd.DataFrame:
    """Return a table of the runs in a panel's ``reference``, with the columns that the plots of own runs need."""
    runs = pd.DataFrame(reference["runs"]).rename(columns={"p": "regularizer.p"})
    return runs.assign(density=1 - runs["zeros"])


def _density_axis(axes: Axes) -> None:
    """Make the x axis logarithmic, from many weights that are not zero on the left to few on the right."""
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_locator(FixedLocator(DENSITIES))
    axes.xaxis.set_major_formatter(PERCENT)
    axes.xaxis.set_minor_formatter(NullFormatter())


def _methods(
    axes: Axes, rows: pd.DataFrame, looks: Mapping[style.Method, style.Look], metric: str, named: bool
) -> None:
    """Draw the lines of all methods, see :func:`_against_density`.

    Args:
        axes: the axes to draw in.
        rows: the last rows of the runs of a panel, with ``density``.
        looks: the look of each method.
        metric: a column of the rows.
        named: True to write at the end of each line of a method with several lines which settings set it apart.
    """
    places = 0
    for name, look, part in style.by_method(rows, looks):
        drawn = {"color": look.color, "marker": look.marker, "ms": 4.5, "linewidth": 1.2, "mfc": "white"}
        if name == REFERENCE:
            best = _best_on_validation(part, metric)
            label = f"{look.label}, lowest validation loss"
            axes.axhline(best.median(), color=look.color, linestyle=look.line, label=label)
            band = {"facecolor": (look.color, 0.12), "edgecolor": (look.color, 0.7), "linewidth": 0.7}
            axes.axhspan(best.min(), best.max(), **band, label=f"{look.label}, range over seeds")
            continue
        dense = (part["density"] > DENSE).all()
        if dense:
            places += 1
            part = part.assign(density=10 ** (STRIP * places))
        axes.plot(part["density"], part[metric], look.marker, color=look.color, ms=2.5, alpha=0.35, linewidth=0)
        lines = _lines(part, metric)
        for number, (name_of_line, line) in enumerate(lines):
            label = look.label if number == 0 else None
            axes.plot(line["density"], line[metric], linestyle="none" if dense else look.line, label=label, **drawn)
            if named and name_of_line:
                highest = line[metric].iloc[-1] >= max(other[metric].iloc[-1] for _, other in lines)
                place = {"textcoords": "offset points", "va": "bottom" if highest else "top"}
                axes.annotate(
                    name_of_line, line[["density", metric]].iloc[-1], (4, 0), fontsize=6.5, color=look.color, **place
                )
    if places:
        axes.axvline(10 ** (STRIP / 2), color="0.4", linewidth=0.8)
        axes.text(0.01, 0.03, "no or few zeros", transform=axes.transAxes, rotation="vertical", fontsize=7, color="0.3")


def _lines(rows: pd.DataFrame, metric: str) -> list[tuple[str, pd.DataFrame]]:
    """Return the lines of a method: the name of each, and the medians over seeds of density and metric at its settings.

    A line joins the runs that differ in one setting of ``ALONG``. Other settings that vary make further lines, and name
    them; the name of a single line is empty. Runs are left out if one of their seeds diverged.

    Args:
        rows: the last rows of the runs of a method, with ``density``.
        metric: a column of the rows.
    """
    varied = _varied(rows)
    along = next((column for column in ALONG if column in varied), varied[0])
    spread = selection.summarize_over_seeds(rows, varied, ["density", metric])
    medians = spread.xs("median", axis=1, level=1).reset_index().sort_values(along)
    others = [column for column in varied if column != along]
    if not others:
        return [("", medians)]
    names = [column.rpartition(".")[2].replace("strength", "s") for column in others]
    return [
        (", ".join(f"{name} = {value}" for name, value in zip(names, values, strict=True)), line)
        for values, line in medians.groupby(others)
    ]


def _varied(rows: pd.DataFrame) -> list[str]:
    """Return the columns of settings that vary between the runs of a method; its name, which does not, if none does."""
    columns = selection.setting_columns(rows)
    return [column for column in columns if rows[column].nunique(dropna=False) > 1] or ["regularizer"]


def _best_on_validation(rows: pd.DataFrame, metric: str) -> pd.Series:
    """Return a metric of all seeds for the setting of a method with the lowest mean validation loss over all seeds.

    Args:
        rows: the last rows of the runs of a method.
        metric: a column of the rows.
    """
    settings = selection.settings(rows)
    means = rows.groupby(settings)["val/loss"].agg(lambda of_seeds: of_seeds.mean(skipna=False))
    return rows.loc[settings == means.idxmin(), metric]


def _near_adamw(axes: Axes, rows: pd.DataFrame, metric: str, near: float, words: str) -> None:
    """Hatch the region with more than 90 % zeros and a metric at most ``near`` worse than AdamW, if it is reached.

    Args:
        axes: the axes to draw in.
        rows: the last rows of the runs of a panel, with ``density``.
        metric: a column of the rows.
        near: how far below AdamW (above it, if negative) a value still counts as near.
        words: ``near`` in words.
    """
    adamw = rows[rows["regularizer"] == REFERENCE]
    if adamw.empty or rows["density"].min() > 0.1:
        return
    limits, right = axes.get_ylim(), axes.get_xlim()[1]
    edges = (_best_on_validation(adamw, metric).median() - near, limits[1] if near > 0 else limits[0])
    drawn = {"facecolor": "none", "edgecolor": "0.6", "linewidth": 0, "hatch": "////", "zorder": 0}
    axes.fill_between([0.1, right], *edges, **drawn, label=f"> 90 % zeros, within {words} of AdamW")
    axes.set_xlim(right=right)
    axes.set_ylim(limits)


def _author(axes: Axes, runs: pd.DataFrame, looks: Mapping[style.Method, style.Look], metric: str) -> None:
    """Draw published runs, the table of :func:`_published`, as diamonds in the colours of their methods."""
    for name, look, part in style.by_method(runs, looks):
        part = part.sort_values("density")
        drawn = {"linestyle": "none"} if name == REFERENCE else {"linestyle": look.line, "label": look.label}
        axes.plot(part["density"], part[metric], color=look.color, marker="D", ms=5, linewidth=1.2, **drawn)
    axes.plot([], [], "D", color="0.4", ms=5, label="author's runs (chosen on the test set, one seed)")


def fig6(table: pd.DataFrame, sizes: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw a histogram of log10 |w| for each method, one below another, with a bar at the left for the zeros.

    A line marks 1e-4. The share of weights between zero and this line is written next to that of the zeros.

    Args:
        table: the rows of the runs; not used.
        sizes: the probe's table, with the share of weights in each bin for each run.
        panels: the declarations of the panels, one column of axes each.
    """
    looks = style.looks_by_method(sizes)
    shape, size = (len(looks), len(panels)), (4.6 * len(panels) + 0.6, 1.15 * len(looks) + 1)
    figure, grid = plt.subplots(*shape, figsize=size, sharex=True, squeeze=False, layout="constrained")
    for column, panel in zip(grid.T, panels, strict=True):
        rows = sizes[sizes["panel"] == panel["panel"]]
        column[0].set_title(panel["title"])
        for axes, (_, look, part) in zip(column, style.by_method(rows, looks), strict=True):
            _histogram(axes, part, look)
        column[-1].set_xticks([-13.75, -12, -9, -6, -3, 0], ["zero", "-12", "-9", "-6", "-3", "0"])
        column[-1].set_xlabel("log10 |w|")
    figure.supylabel("share of weights", fontsize=9)
    return figure


def _histogram(axes: Axes, rows: pd.DataFrame, look: style.Look) -> None:
    """Draw the share of weights in each bin, and at the left the share of zeros: means and ranges over seeds.

    Bins whose mean is below the axis have no bar, and no range either.
    """
    width = float(np.diff(np.sort(rows["log10_size"].unique())[:2])[0])
    shares = selection.summarize_over_seeds(rows, "log10_size", ["share"])["share"]
    of_runs = rows.drop_duplicates("run").assign(left=-14.5)
    zero = selection.summarize_over_seeds(of_runs, "left", ["zero"])["zero"]
    for spread, wide in ((shares, width), (zero, 6 * width)):
        spread = spread[spread["mean"] > LEAST_SHARE]
        bars = np.maximum(0, [spread["mean"] - spread["min"], spread["max"] - spread["mean"]])
        drawn = {"yerr": bars, "align": "edge", "color": look.color, "error_kw": {"elinewidth": 0.6}}
        axes.bar(spread.index, spread["mean"], wide, **drawn)
    axes.set_yscale("log")
    axes.set_ylim(LEAST_SHARE, 12)
    axes.set_yticks([1e-4, 1e-2, 1])
    share, between = float(zero["mean"].iloc[0]), float(of_runs["middle"].mean())
    axes.text(-13.75, 1.3 * max(share, LEAST_SHARE), f"{100 * share:.1f} %", ha="center", va="bottom", fontsize=8)
    strength = rows["regularizer.strength"].iloc[0]
    axes.text(-12.6, 2, f"{look.label}, s = {strength:g}", fontsize=8)
    axes.text(-12.6, 0.15, f"between zero and 1e-4: {100 * between:.2g} %", fontsize=7.5, color="0.3")
    axes.axvline(-13, color="0.7", linewidth=0.8)
    axes.axvline(-4, color="0.3", linewidth=0.9, linestyle="--")
