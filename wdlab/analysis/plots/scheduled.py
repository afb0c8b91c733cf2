"""The plots of P5 (scheduled weight decay, arXiv 2011.11152) over strengths: fig15, and fig17 over learning rates too.

Called by ``figures``, which reads their names in ``configs/figure``. A plot is a function of the table of the runs and
of the declarations of the panels. It returns the picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from wdlab.analysis import grids, selection, style
from wdlab.analysis.plots.five_optimizers import by_optimizer

STRENGTH, RATE = "regularizer.strength", "optimizer.lr"
GRADIENT, LOSS, NORM = "gradient/full_norm", "train/loss", "norm/weight_l2"
CONSTANT, FALLING = "constant", "multistep"  # values of the column lr_schedule
WEIGHTS, FULL = "norm of the weights |w|", "norm of the full gradient |g|"
NO_DECAY = "no decay"  # the labels of runs without decay begin with this
NAMES = {"Adam": "Adam with L2"}  # labels that differ from those of the figures that compare optimizers
LATE = 0.82  # the gradients of mini-batches are averaged over the log lines after this share of the run
POINT = 0.01  # of test error
WHOLE_FROM = 0.2  # fig17 writes larger test errors as whole percent
MOST_ABOVE_BEST = 0.25  # colours of fig17 end this much test error above the best
ERROR_TICKS = (0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
ROOM = 1.2  # the factor by which a logarithmic axis extends beyond its values
FREE = 0.1  # 1 - m for the momentum m of fig15's SGD


def _by_optimizer(rows: pd.DataFrame) -> Iterator[tuple[style.Look, pd.DataFrame]]:
    """Yield look and rows of each optimizer, with the labels of these figures."""
    for look, part in by_optimizer(rows):
        yield look._replace(label=NAMES.get(look.label, look.label)), part


def fig15(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw the norm of the full gradient at the end against strength and training loss, one row of axes per panel.

    The last column has, for SGD, gradients over the norm of the weights with what two explanations predict, and for
    Adam the norm of the full gradient against that of the weights. The first column is empty where a panel has no runs
    with a constant learning rate.

    Args:
        table: the rows of the runs.
        panels: the declarations of the panels.
    """
    shape = (len(panels), 4)
    figure, grid = plt.subplots(*shape, figsize=(10, 2.5 * shape[0] + 0.9), squeeze=False, layout="constrained")
    for axes, panel in zip(grid, panels, strict=True):
        rows = table[table["panel"] == panel["panel"]]
        ends = selection.last_lines(rows)
        constant, falling = (ends[ends["lr_schedule"] == schedule] for schedule in (CONSTANT, FALLING))
        for one, of_schedule in ((axes[0], constant), (axes[1], falling)):
            _curves(one, of_schedule, STRENGTH)
            _without_decay(one, of_schedule, None)
            one.set_xlabel("strength s")
        axes[0].set_visible(len(constant) > 0)
        first = axes[0] if len(constant) else axes[1]
        axes[0].set_title("constant learning rate")
        axes[1].set_title("falling learning rate")
        first.set_title(f"{panel['title']}\n{first.get_title()}")
        _curves(axes[2], falling, LOSS)
        _without_decay(axes[2], falling, LOSS)
        axes[2].set_xlabel("training loss at the end (nats)")
        axes[2].set_title("falling, by training loss")
        first.set_ylabel(FULL)
        if (rows["optimizer"] == "sgd").all():
            _explanations(axes[3], rows)
            axes[3].set_title("L2: gradients over weights")
        else:
            _curves(axes[3], falling, NORM)
            _without_decay(axes[3], falling, NORM)
            axes[3].set_xlabel(WEIGHTS)
            axes[3].set_ylabel(FULL)
            axes[3].set_title("falling, by norm of the weights")
        for one in axes:
            one.set_xscale("linear" if one.get_xlabel() == WEIGHTS else "log")
            one.set_yscale("log")
        for one in axes[1:3]:
            one.sharey(axes[0])
        axes[0].set_ylim(
            ends[GRADIENT].min() / ROOM, ends[GRADIENT].max() * ROOM
        )  # sharey takes the limits of one column
        strengths = np.sort(rows.loc[rows[STRENGTH] > 0, STRENGTH].unique())
        for one in axes:
            _few_numbers(one.yaxis)
            if one.get_xscale() == "log":
                _few_numbers(one.xaxis)
            if one.get_xlabel() == "strength s" and len(strengths) == 2:
                one.xaxis.set_major_locator(FixedLocator(strengths))
    _legend_above(figure, grid)
    return figure


def _legend_above(figure: Figure, grid: np.ndarray) -> None:
    """Write one legend for all axes: the optimizers, then runs without decay, then the curves of the last column."""
    shown: list[dict[str, Any]] = [{}, {}]
    for axes in grid.flat:
        shown[axes in grid[:, -1]] |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    ordered = dict(sorted(shown[0].items(), key=lambda item: item[0].startswith(NO_DECAY))) | shown[1]
    place = {"loc": "outside upper center", "ncols": 5, "handlelength": 2.6}
    figure.legend(ordered.values(), ordered.keys(), fontsize=8, **place)


def _few_numbers(axis: Axis) -> None:
    """Label a logarithmic axis at powers of ten; within two decades at 1, 2 and 5 too, within a factor of 3 evenly."""
    low, high = axis.get_view_interval()
    subs = (1, 2, 5) if high < 100 * low else (1,)
    axis.set_major_locator(MaxNLocator(4) if high < 3 * low else LogLocator(subs=subs))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _curves(axes: Axes, ends: pd.DataFrame, x: str) -> None:
    """Draw full gradients against a column: medians over seeds of each strength, joined by a line, and pale seeds."""
    for look, rows in _by_optimizer(ends):
        axes.plot(rows[x], rows[GRADIENT], look.marker, color=look.color, ms=2.5, alpha=0.3, mew=0)
        over = selection.summarize_over_seeds(rows.assign(x=rows[x]), STRENGTH, ["x", GRADIENT])
        drawn = {"color": look.color, "linestyle": look.line, "marker": look.marker, "ms": 4.5, "mfc": "white"}
        axes.plot(over["x", "median"], over[GRADIENT, "median"], **drawn, label=look.label)


def _without_decay(axes: Axes, ends: pd.DataFrame, x: str | None) -> None:
    """Draw the full gradient of the runs without decay: as crosses over a column, or their median as a line."""
    part = ends[ends["regularizer"] == "none"]
    if x is None:
        axes.axhline(part[GRADIENT].median(), color="black", linestyle=":", linewidth=1, label=f"{NO_DECAY}, median")
    else:
        axes.plot(part[x], part[GRADIENT], "x", color="black", ms=3.5, alpha=0.6, label=f"{NO_DECAY}, one seed")


def _explanations(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw gradients over the norm of the weights for SGD with L2, and what two explanations predict.

    In a steady state with momentum m the gradients of mini-batches are ``sqrt(2 s (1 - m) / lr)`` times the weights.
    Where the loss balances the penalty, the full gradient is s times the weights.
    """
    plain = rows[(rows["regularizer"] == "l2") & (rows["regularizer.over_time"] == "constant")]
    late = plain[plain["step"] > LATE * plain["step"].max()]
    strengths = np.sort(plain[STRENGTH].unique())
    for schedule, marker, color in ((CONSTANT, "D", style.PALETTE[3]), (FALLING, "o", style.PALETTE[0])):
        word = "falling" if schedule == FALLING else schedule
        part = late[late["lr_schedule"] == schedule]
        logs = np.log(part["batch_ratio"]).groupby([part[STRENGTH], part["seed"]]).mean()
        medians = np.exp(logs.groupby(level=0).median())
        axes.plot(medians, color=color, marker=marker, ms=4.5, mfc="white", label=f"mini-batches, {word} lr")
        final = part["lr"].iloc[-1]
        predicted = np.sqrt(2 * strengths * FREE / final)
        axes.plot(strengths, predicted, color=color, linestyle=":", label=f"steady state, {word} lr")
    ends = selection.last_lines(plain)
    full = ends[ends["lr_schedule"] == FALLING].groupby(STRENGTH)["full_ratio"].median()
    axes.plot(full, color="black", marker="s", ms=4, label="full gradient, falling lr")
    axes.plot(strengths, strengths, color="0.5", linestyle="--", label="balance: |g| / |w| = s")
    axes.set_xlabel("strength s")
    axes.set_ylabel("|g| / |w|")


def fig17(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw the mean test error over learning rate and strength for each method, and the best strength of each rate.

    The panels have one row of axes each: a heat map for each method, on one grid and with one scale of colours, and at
    the right the strength at which a parabola through validation losses is lowest, against the learning rate.

    Args:
        table: the rows of the runs.
        panels: the declarations of the panels. ``rates`` has the learning rates over which slopes are fitted.
    """
    ends = selection.last_lines(table)
    ends = ends.assign(error=1 - ends["test/accuracy"])
    columns = 1 + max(len([*_by_optimizer(part)]) for _, part in ends.groupby("panel"))
    size = (2.5 * columns + 0.6, 3.3 * len(panels) + 0.6)
    figure, grid = plt.subplots(len(panels), columns, figsize=size, squeeze=False, layout="constrained")
    for axes, panel in zip(grid, panels, strict=True):
        rows = ends[ends["panel"] == panel["panel"]]
        errors = rows.groupby(["regularizer", STRENGTH, RATE])["error"].agg(
            lambda of_seeds: of_seeds.mean(skipna=False)
        )
        colors = LogNorm(errors.min(), min(errors.max(), errors.min() + MOST_ABOVE_BEST), clip=True)
        for one, (look, part) in zip(axes[:-1], _by_optimizer(rows), strict=False):
            image = _heat_map(one, part, look, colors)
            _best_strengths(axes[-1], part, look, panel["rates"])
        axes[0].set_ylabel("strength s")
        bar = figure.colorbar(image, ax=axes[-2], extend="max")
        bar.set_label("test error")
        ticks = [tick for tick in ERROR_TICKS if colors.vmin <= tick <= colors.vmax]
        bar.set_ticks(ticks, labels=[f"{100 * tick:g} %" for tick in ticks], minor=False)
        bar.minorticks_off()
        _slope_guide(axes[-1])
    figure.suptitle("\n".join(panel["title"] for panel in panels))
    return figure


def _heat_map(axes: Axes, rows: pd.DataFrame, look: style.Look, colors: LogNorm) -> AxesImage:
    """Draw a method's test errors: means over seeds, with frames around the cells that are within a point of the best.

    A cell of which a run diverged has no colour. The title has the share that the claims judge: the mean over seeds of
    the share of settings within a point of the best.
    """
    cells = rows.pivot_table(
        index=STRENGTH, columns=RATE, values="error", aggfunc=lambda e: e.mean(skipna=False), dropna=False
    )
    image = axes.imshow(cells, origin="lower", aspect="auto", cmap="viridis_r", norm=colors)
    best = cells.min().min()
    for (row, column), error in np.ndenumerate(cells.to_numpy()):
        if np.isfinite(error):
            dark = image.cmap(colors(error))[:3] @ np.array([0.3, 0.59, 0.11]) < 0.5
            weight = "bold" if error <= best + POINT else "normal"
            text = {"ha": "center", "va": "center", "fontsize": 7.5, "weight": weight}
            number = f"{100 * error:{'.1f' if error < WHOLE_FROM else '.0f'}}"
            axes.text(column, row, number, color="white" if dark else "black", **text)
        if error <= best + POINT:
            frame = {"fill": False, "edgecolor": "black", "linewidth": 1.2 if error > best else 2.6}
            axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, **frame))
    shares = grids.shares_within(rows, "error", -1, -best - POINT)
    share = 100 * np.mean([*shares.values()])
    axes.set_title(f"{look.label}: {share:.1f} % of the grid\nwithin a point of its best", fontsize=8.5)
    axes.set_xticks(range(cells.shape[1]), [f"{rate:g}" for rate in cells.columns], fontsize=7.5)
    axes.set_yticks(range(cells.shape[0]), [f"{strength:g}" for strength in cells.index])
    axes.set_xlabel("learning rate")
    axes.grid(False)
    return image


def _best_strengths(axes: Axes, rows: pd.DataFrame, look: style.Look, rates: Sequence[float]) -> None:
    """Draw a method's best strength against the learning rate: medians over seeds, and thin each seed.

    Small markers are medians of the strengths that have the lowest validation loss.
    """
    chosen = rows[rows[RATE].isin(rates)]
    best = np.exp(grids.best_strengths(chosen, "val/loss", -1, STRENGTH, RATE))
    slopes = grids.slopes_of_best(chosen, "val/loss", -1, STRENGTH, RATE)
    axes.plot(best.T, color=look.color, linewidth=0.6, alpha=0.6)
    lowest = chosen.loc[chosen.dropna(subset="val/loss").groupby(["seed", RATE])["val/loss"].idxmin()]
    axes.plot(lowest.groupby(RATE)[STRENGTH].median(), look.marker, color=look.color, ms=3)
    drawn = {"color": look.color, "linestyle": look.line, "marker": look.marker, "mfc": "white"}
    axes.plot(best.median(), **drawn, label=f"{look.label} {np.mean([*slopes.values()]):+.2f}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("strength s")
    axes.set_title("vertex of the validation loss\nover strength")


def _slope_guide(axes: Axes) -> None:
    """Draw a line on which the product of strength and learning rate is constant, and the legend below the axes."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    middle = np.sqrt(bottom * top)
    ends = np.sqrt(left * right) * np.array([0.3, 1 / 0.3])
    axes.plot(ends, middle * np.sqrt(left * right) / ends, color="0.5", linestyle=":", label="slope -1")
    axes.set_ylim(bottom, top)
    place = {
        "loc": "upper center",
        "bbox_to_anchor": (0.5, -0.25),
        "ncols": 2,
        "columnspacing": 0.8,
        "handlelength": 1.6,
    }
    axes.legend(**place, fontsize=7, title="method, and its slope (mean over seeds)", title_fontsize=7)
