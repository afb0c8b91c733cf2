"""The plots of P5 (scheduled weight decay, arXiv 2011.11152) over strengths: fig15, and fig17 over learning rates too.

Called by ``figures``, which reads their names in ``configs/figure``. A plot is a function of the table of the runs and
of the declarations of the panels. It returns the picture.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wdlab.analysis import selection, style

STRENGTH, GRADIENT, LOSS, NORM = "regularizer.strength", "gradient/full_norm", "train/loss", "norm/weight_l2"
CONSTANT, FALLING = "constant", "multistep"  # values of the column lr_schedule
WEIGHTS = "norm of the weights |w|"
LATE = 0.82  # the gradients of mini-batches are averaged over the log lines after this share of the run
FREE = 0.1  # 1 - m for the momentum m of fig15's SGD


class _Method(NamedTuple):
    """The runs of a method with one schedule of the learning rate, and how they are drawn."""

    rows: pd.DataFrame
    label: str
    drawn: dict[str, Any]


# The methods by optimizer, regularizer, and whether the strength falls with the learning rate: label and look.
METHODS = {
    ("sgd", "l2", False): ("SGD, L2", style.PALETTE[0], "--", "o"),
    ("sgd", "scheduled", False): ("SGDS", style.PALETTE[1], "-", "s"),
    ("sgd", "l2", True): ("SGD, corrected L2 (SGDC)", style.PALETTE[2], "-.", "^"),
    ("adam", "l2", False): ("Adam, L2", style.PALETTE[3], ":", "v"),
    ("adam", "decoupled", False): ("AdamW", style.PALETTE[0], "--", "o"),
    ("adam", "scheduled", False): ("AdamS", style.PALETTE[1], "-", "s"),
    ("adam", "decoupled", True): ("AdamW, corrected (AdamC)", style.PALETTE[2], "-.", "^"),
}


def fig15(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw the norm of the full gradient at the end against strength and training loss, one row of axes per panel.

    The last column has, for SGD, gradients over the norm of the weights with what two explanations predict, and for Adam
    the norm of the full gradient against that of the weights.

    Args:
        table: the rows of the runs.
        panels: the declarations of the panels.
    """
    shape = (len(panels), 4)
    figure, grid = plt.subplots(*shape, figsize=(12, 3.1 * shape[0] + 0.4), squeeze=False, layout="constrained")
    for axes, panel in zip(grid, panels, strict=True):
        rows = table[table["panel"] == panel["panel"]]
        ends = selection.last_lines(rows)
        constant, falling = ([*_methods(ends, schedule)] for schedule in (CONSTANT, FALLING))
        for one, methods, schedule in ((axes[0], constant, CONSTANT), (axes[1], falling, FALLING)):
            _curves(one, methods, STRENGTH, GRADIENT)
            _without_decay(one, ends[ends["lr_schedule"] == schedule], None)
            one.set_xlabel("strength s")
        axes[0].set_title(f"{panel['title']}\nconstant learning rate")
        axes[1].set_title("falling learning rate")
        _curves(axes[2], falling, LOSS, GRADIENT)
        _without_decay(axes[2], ends[ends["lr_schedule"] == FALLING], LOSS)
        axes[2].set_xlabel("training loss at the end (nats)")
        axes[2].set_title("falling, by training loss")
        if (rows["optimizer"] == "sgd").all():
            _explanations(axes[3], rows)
            axes[3].set_title("L2: gradients over weights")
        else:
            _curves(axes[3], falling, NORM, GRADIENT)
            _without_decay(axes[3], ends[ends["lr_schedule"] == FALLING], NORM)
            axes[3].set_xlabel(WEIGHTS)
            axes[3].set_title("falling, by norm of the weights")
        axes[0].set_ylabel("norm of the full gradient |g|")
        for one in axes:
            one.set_xscale("linear" if one.get_xlabel() == WEIGHTS else "log")
            one.set_yscale("log")
        for one in axes[1:3]:
            one.sharey(axes[0])
        handles, labels = axes[1].get_legend_handles_labels()
        axes[2].legend(handles, labels, fontsize=7, loc="upper left")
    return figure


def _methods(ends: pd.DataFrame, schedule: str) -> Iterator[_Method]:
    """Yield the methods with decay that some last rows have with one schedule of the learning rate."""
    rows = ends[ends["lr_schedule"] == schedule]
    over_time = rows.get("regularizer.over_time", pd.Series("", index=rows.index))
    for (optimizer, regularizer, corrected), (label, color, line, marker) in METHODS.items():
        part = rows[
            (rows["optimizer"] == optimizer)
            & (rows["regularizer"] == regularizer)
            & ((over_time == "multistep") == corrected)
        ]
        if len(part):
            yield _Method(part, label, {"color": color, "linestyle": line, "marker": marker})


def _curves(axes: Axes, methods: list[_Method], x: str, y: str) -> None:
    """Draw for each method the medians over seeds at its strengths, joined by a line, and each seed as a pale marker."""
    for method in methods:
        color, marker = method.drawn["color"], method.drawn["marker"]
        axes.plot(method.rows[x], method.rows[y], marker, color=color, ms=2.5, alpha=0.3, mew=0)
        over = selection.summarize_over_seeds(method.rows.assign(x=method.rows[x]), STRENGTH, ["x", y])
        axes.plot(over["x", "median"], over[y, "median"], **method.drawn, ms=4.5, mfc="white", label=method.label)


def _without_decay(axes: Axes, ends: pd.DataFrame, x: str | None) -> None:
    """Draw the full gradient of the runs without decay: as crosses over a column, or their median as a line."""
    part = ends[ends["regularizer"] == "none"]
    if x is None:
        axes.axhline(part[GRADIENT].median(), color="black", linestyle=":", linewidth=1, label="no decay, median")
    else:
        axes.plot(part[x], part[GRADIENT], "x", color="black", ms=3.5, alpha=0.6)


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
    axes.legend(fontsize=6.5, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, columnspacing=1)
