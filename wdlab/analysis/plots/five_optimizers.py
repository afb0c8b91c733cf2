"""The plots of P5 (scheduled weight decay, arXiv 2011.11152) that compare optimizers: fig16 and fig18.

Called by ``figures``, which reads their names in ``configs/figure``. A plot is a function of the table of the runs and
the declarations of the panels. It returns the picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from wdlab.analysis import selection
from wdlab.analysis.style import PALETTE, Look

CONSTANT = ("constant", None)  # names of a strength that does not change over time
STRENGTH = "regularizer.strength"
INDIGO = "#332288"  # dark, for a line on a pale one
# The look of each optimizer, by the names of optimizer and regularizer, and whether its strength is constant.
LOOKS: dict[tuple[str, str, bool], Look] = {
    ("adam", "scheduled", True): Look(PALETTE[1], "-", "D", "AdamS"),
    ("adam", "decoupled", True): Look(PALETTE[0], "--", "v", "AdamW"),
    ("adam", "decoupled", False): Look(PALETTE[2], "-.", "^", "AdamC"),
    ("adam", "l2", True): Look(PALETTE[3], (0, (5, 1)), "s", "Adam"),
    ("amsgrad", "l2", True): Look(INDIGO, (0, (1, 2)), "+", "AMSGrad"),  # on Adam's line, or near it
    ("sgd", "l2", True): Look(PALETTE[4], (0, (6, 2)), "o", "SGD"),
    ("sgd", "scheduled", True): Look("0.6", (0, (1, 1.5)), "X", "SGDS"),  # on SGD's line, or near it
    ("sgd", "l2", False): Look(PALETTE[2], "-.", "^", "SGDC"),
}
CURVES = (  # fig16's columns of the table over epochs, with their labels
    ("test/error", "test error"),
    ("train/loss", "train loss (nats)"),
    ("gradient/full_norm", "norm of the gradient of the loss\non the whole training split"),
    ("strength", "strength in force"),
)
SHARPNESS = (  # fig18's columns of the table, with their labels
    ("sharpness/top_eigenvalue", "top Hessian eigenvalue"),
    ("sharpness/trace", "trace of the Hessian"),
    ("scale_invariant/sharpness", "top eigenvalue, scale-invariant"),
    ("scale_invariant/trace", "trace, scale-invariant"),
)
MARKERS = 3  # on each line of fig16
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.3g} %")
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def by_optimizer(rows: pd.DataFrame) -> Iterator[tuple[Look, pd.DataFrame]]:
    """Yield the look and the rows of each optimizer in ``LOOKS`` that occurs in some rows of a figure's table."""
    over_time = rows.get("regularizer.over_time", pd.Series(None, index=rows.index, dtype=object))
    constant = over_time.isna() | over_time.isin(CONSTANT)
    for (optimizer, regularizer, is_constant), look in LOOKS.items():
        part = rows[(rows["optimizer"] == optimizer) & (rows["regularizer"] == regularizer) & (constant == is_constant)]
        if len(part):
            yield look, part


def fig16(table: pd.DataFrame, panels: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw four metrics over epochs, and the test errors at the end next to the published ones, two rows for a panel.

    Each optimizer is drawn at the strength with the lowest mean validation loss over seeds. Thick lines are medians
    over seeds, thin lines the seeds; dotted vertical lines are the epochs at which the learning rate falls.

    Args:
        table: the rows of the runs.
        panels: the declarations of the panels. One may have ``published``: mean and standard deviation of the test
            error in percent by network and optimizer.
    """
    size = (10.5, 5.6 * len(panels) + 0.5)
    figure, grid = plt.subplots(2 * len(panels), 3, figsize=size, squeeze=False, layout="constrained")
    for place, panel in enumerate(panels):
        upper, lower = grid[2 * place], grid[2 * place + 1]
        chosen = [(look, tuned(rows)) for look, rows in by_optimizer(table[table["panel"] == panel["panel"]])]
        chosen = [(look, rows) for look, rows in chosen if len(rows)]
        for axes, (metric, label) in zip((*upper[:2], *lower[:2]), CURVES, strict=True):
            for nth, (look, rows) in enumerate(chosen):
                _over_epochs(axes, rows, look, metric, nth)
            _logarithmic(axes.yaxis)
            axes.set_ylabel(label)
            axes.set_xlabel("epoch")
            for epoch in _falls(pd.concat([rows for _, rows in chosen])):
                axes.axvline(epoch, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
        _ticks_of_error(upper[0], pd.concat([rows for _, rows in chosen]))
        upper[0].set_title(panel["title"])
        _errors(upper[2], [(_named(look, rows), look, *_percent(rows)) for look, rows in chosen])
        upper[2].set_title("test error at the end, here")
        if "published" in panel:
            _published(lower[2], panel["published"])
        else:
            lower[2].set_axis_off()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), handlelength=2.8)
    return figure


def _logarithmic(axis: Axis, ticks: Sequence[float] = (1, 2, 5)) -> None:
    """Make an axis logarithmic. ``ticks`` are the numbers within a power of ten that are written."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=ticks))
    axis.set_major_formatter(PLAIN)
    axis.set_minor_formatter(NullFormatter())


def tuned(rows: pd.DataFrame) -> pd.DataFrame:
    """Return those rows of an optimizer that have the setting with the lowest mean validation loss at the end.

    A setting of which a run diverged is not chosen. If there is no other, no row is returned.
    """
    last = selection.last_lines(rows)
    means = last.groupby(selection.settings(last))["val/loss"].agg(lambda of_seeds: of_seeds.mean(skipna=False))
    best = last[selection.settings(last) == means.idxmin()] if means.notna().any() else last[:0]
    return rows[rows["run"].isin(best["run"])]


def _over_epochs(axes: Axes, rows: pd.DataFrame, look: Look, metric: str, place: int) -> None:
    """Draw a metric over epochs: each seed, and the median over seeds, with a few markers.

    Args:
        axes: the axes to draw in.
        rows: the rows of an optimizer, of one setting.
        look: its look.
        metric: the column.
        place: the place of the optimizer among all. Lines of neighbours may coincide, but not their markers.
    """
    by_seed = rows.pivot_table(index="epoch", columns="seed", values=metric)
    by_seed = by_seed[by_seed.index > 0]  # before the first update all optimizers are equal, and far from their ends
    drawn = {"color": look.color, "linestyle": look.line}
    if metric == "strength" and (rows["regularizer"] != "scheduled").all():
        drawn["drawstyle"] = "steps-pre"  # a log line has the strength of the update before it
    axes.plot(by_seed.index, by_seed, **drawn, linewidth=0.4, alpha=0.3)
    every = max(len(by_seed) // MARKERS, 2)
    first = place % 2 * (every // 2)
    drawn |= {"marker": look.marker, "ms": 4.5, "mfc": "white", "markevery": (first, every)}
    axes.plot(by_seed.index, by_seed.median(axis=1, skipna=False), **drawn, linewidth=1.8, label=look.label)


def _falls(rows: pd.DataFrame) -> list[float]:
    """Return the epochs at which the learning rate falls, as far as the log lines tell: the line before each fall."""
    of_run = rows[rows["run"] == rows["run"].iloc[0]].sort_values("epoch")
    return of_run.loc[of_run["lr"].diff(-1) > 1e-12, "epoch"].tolist()


def _ticks_of_error(axes: Axes, rows: pd.DataFrame) -> None:
    """Set the range of a logarithmic axis to that of the test error after the first fifth, with ticks in percent."""
    late = rows.loc[rows["epoch"] > rows["epoch"].max() / 5, "test/error"]
    axes.set_ylim(0.9 * max(late.min(), 1e-4), 1.1 * late.max())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 5.5, 6, 6.5, 8)))
    axes.yaxis.set_major_formatter(PERCENT)


def _named(look: Look, rows: pd.DataFrame) -> str:
    """Return the name of an optimizer with its strength."""
    return f"{look.label}, s = {rows[STRENGTH].iloc[0]:g}"


def _percent(rows: pd.DataFrame) -> tuple[float, float, np.ndarray]:
    """Return mean, standard deviation and values by seed of the test error at the end, in percent."""
    errors = 100 * selection.last_lines(rows)["test/error"].to_numpy()
    return errors.mean(), errors.std(ddof=1) if len(errors) > 1 else 0.0, errors


def _errors(axes: Axes, lines: Sequence[tuple[str, Look, float, float, Sequence[float]]], offset: float = 0.0) -> None:
    """Draw test errors as a table: a line each with name, mean, standard deviation, and the values of the seeds.

    Args:
        axes: the axes to draw in.
        lines: name, look, mean, standard deviation and values, in percent, from top to bottom.
        offset: the height by which the lines are moved down.
    """
    for height, (_, look, mean, spread, values) in enumerate(lines):
        y = height + offset
        axes.plot(values, np.full(len(values), y), look.marker, color=look.color, ms=3, alpha=0.3, linestyle="none")
        axes.errorbar(mean, y, xerr=spread, color=look.color, marker=look.marker, ms=5.5, mfc="white", capsize=2)
        text = f"{mean:.2f} ({spread:.2f})"
        axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5)
    axes.set_yticks([height + offset for height in range(len(lines))], [name for name, *_ in lines], fontsize=7.5)
    axes.set_ylim(len(lines) - 0.4 + offset, offset - 0.6)
    axes.set_xlabel("test error (%)")


def _published(axes: Axes, errors: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw published test errors, see :func:`_errors`, one block of lines for each network."""
    looks = {look.label: look for look in LOOKS.values()}
    lines = [
        (f"{name}, {network}", looks[name], *of_optimizer, [])
        for network, errors_of in errors.items()
        for name, of_optimizer in errors_of.items()
    ]
    _errors(axes, lines)
    for count in np.cumsum([len(of_network) for of_network in errors.values()])[:-1]:
        axes.axhline(count - 0.5, color="0.6", linewidth=0.6)
    axes.set_title("as published: all of CIFAR-10, 200 epochs")


def fig18(table: pd.DataFrame, panels: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the sharpness at the end against the train loss at the end, one row for a panel, one column for a metric.

    Lines join the medians over seeds of an optimizer's strengths, pale markers are seeds. A dotted line is the train
    loss at which the claims compare optimizers.

    Args:
        table: the rows of the runs.
        panels: the declarations of the panels. Each has ``matched``: ``at``, a train loss in nats; or ``within``, the
            distance from the lowest mean train loss of any setting in the panel.
    """
    size = (2.75 * len(SHARPNESS) + 0.4, 3.1 * len(panels) + 0.5)
    figure, grid = plt.subplots(len(panels), len(SHARPNESS), figsize=size, squeeze=False, layout="constrained")
    ends, shown = selection.last_lines(table), {}
    for row_of_axes, panel in zip(grid, panels, strict=True):
        rows = ends[ends["panel"] == panel["panel"]]
        level = _matched(rows, panel["matched"])
        for axes, (metric, label) in zip(row_of_axes, SHARPNESS, strict=True):
            axes.axvline(level, color="0.4", linewidth=0.9, linestyle=":", label="train loss of the claims", zorder=0)
            for look, part in by_optimizer(rows):
                _against_loss(axes, part, look, metric)
            _logarithmic(axes.xaxis, (1, 3))
            _logarithmic(axes.yaxis)
            axes.set_title(label)
            axes.set_xlabel("train loss (nats)")
            shown |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        row_of_axes[0].set_ylabel(panel["title"])
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=len(shown), handlelength=2.8)
    return figure


def _matched(rows: pd.DataFrame, rule: Mapping[str, float]) -> float:
    """Return the train loss in nats at which optimizers are compared, see :func:`fig18`.

    Args:
        rows: the last rows of the runs of a panel.
        rule: the panel's ``matched``.
    """
    if "at" in rule:
        return rule["at"]
    return rows.groupby(selection.settings(rows))["train/loss"].mean().min() + rule["within"]


def _against_loss(axes: Axes, rows: pd.DataFrame, look: Look, metric: str) -> None:
    """Draw a metric against the train loss: the medians of each strength in a line, and each seed."""
    axes.plot(rows["train/loss"], rows[metric], look.marker, color=look.color, ms=2, alpha=0.3, linestyle="none")
    medians = selection.summarize_over_seeds(rows, STRENGTH, ["train/loss", metric]).xs("median", axis=1, level=1)
    drawn = {"color": look.color, "linestyle": look.line, "marker": look.marker, "ms": 4, "mfc": "white"}
    axes.plot(medians["train/loss"], medians[metric], **drawn, linewidth=1.3, label=look.label)
