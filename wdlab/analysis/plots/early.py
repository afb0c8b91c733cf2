"""The plot of P4 (early weight decay, arXiv 2012.13841) about when weights decay: fig11. Its parts also draw fig13.

Called by ``figures``, which reads the name in ``configs/figure``. A plot is a function of the table of the runs and of
the declarations of the panels. It returns the picture.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogFormatterSciNotation,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)

from wdlab.analysis import selection
from wdlab.analysis.style import PALETTE, Look

OVER_TIME, SWITCH, STRENGTH = "regularizer.over_time", "regularizer.over_time.epochs", "regularizer.strength"
NORM, ANGLE = "norm/weight_l2", "scale_invariant/angular_update"
LOOKS = {
    "always": Look(PALETTE[4], "-", "o", "always"),
    "early": Look(PALETTE[0], "--", "s", "early: decay up to an epoch"),
    "late": Look(PALETTE[1], "-.", "^", "late: decay from an epoch on"),
    "never": Look("0.5", ":", "x", "never"),
}
ASIDE = 0.012  # small markers are this share of the run beside the epoch that they belong to
STRONGER = Look(PALETTE[3], "none", "D", "late and stronger: as much decay as always")
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.3g} %")


def fig11(table: pd.DataFrame, panels: list[Mapping[str, Any]]) -> Figure:
    """Draw the test error at the end against the epoch of the switch, and two metrics over epochs, a row for a panel.

    Decay up to epoch 0 is no decay, and decay from epoch 0 on is decay throughout, so that both lines of the first
    column begin and end at the runs with neither. The second column has the norm of the weights, the third the angle by
    which a step turns the weights of a layer.

    Args:
        table: the rows of the runs.
        panels: the declarations of the panels. Each has ``claimed``: the epoch of the switch that the claims are about,
            for ``early`` and ``late``.
    """
    size = (10.5, 3.3 * len(panels) + 0.5)
    figure, grid = plt.subplots(len(panels), 3, figsize=size, squeeze=False, layout="constrained")
    shown: dict[str, Any] = {}
    for axes, panel in zip(grid, panels, strict=True):
        rows = table[table["panel"] == panel["panel"]]
        _by_switch(axes[0], selection.last_lines(rows), rows["epoch"].max())
        axes[0].set_title(panel["title"])
        for one, metric, label in (
            (axes[1], NORM, "norm of the weights"),
            (axes[2], ANGLE, "turn in a step (radians)"),
        ):
            _over_epochs(one, rows, metric, panel["claimed"])
            one.set(xlabel="epoch", ylabel=label)
        shown |= dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=len(shown), handlelength=3)
    return figure


def by_arm(rows: pd.DataFrame) -> Iterator[tuple[str, float | None, pd.DataFrame]]:
    """Yield name, epoch of the switch (None without a switch) and rows of each timing of the decay.

    Decay that is late at a larger strength than decay throughout is named ``stronger``.
    """
    constant = rows[OVER_TIME] == "constant"
    strength = rows.loc[constant, STRENGTH].max()
    for name, where in (("never", constant & (rows[STRENGTH] == 0)), ("always", constant & (rows[STRENGTH] > 0))):
        yield name, None, rows[where]
    for name in ("early", "late"):
        of_name = rows[rows[OVER_TIME] == name]
        for (switch, is_stronger), part in of_name.groupby([SWITCH, of_name[STRENGTH] > strength]):
            yield ("stronger" if is_stronger else name), float(switch), part


def _by_switch(axes: Axes, ends: pd.DataFrame, epochs: float) -> None:
    """Draw the test error at the end against the epoch of the switch: seeds, and the median over seeds."""
    errors = {(name, switch): part.set_index("seed")["test/error"] for name, switch, part in by_arm(ends)}
    never, always = errors.pop(("never", None)), errors.pop(("always", None))
    for name, first, last in (("early", never, always), ("late", always, never)):
        of_name = {switch: values for (arm, switch), values in errors.items() if arm == name}
        by_seed = pd.DataFrame({0.0: first, **of_name, epochs: last}).T.sort_index()
        look = LOOKS[name]
        drawn = {"color": look.color, "linestyle": look.line}
        at = by_seed.index + (1 if name == "late" else -1) * ASIDE * epochs
        axes.plot(at, by_seed, look.marker, color=look.color, ms=2.5, mew=0, alpha=0.4)
        medians = by_seed.median(axis=1, skipna=False)
        axes.plot(medians, **drawn, marker=look.marker, ms=5, mfc="white", linewidth=1.8, label=look.label)
    stronger = {switch: values for (arm, switch), values in errors.items() if arm == "stronger"}
    for switch, values in stronger.items():
        look = {"marker": STRONGER.marker, "color": STRONGER.color, "linestyle": "none"}
        at = switch + 2.5 * ASIDE * epochs
        axes.plot(np.full(len(values), at), values, **look, ms=2.5, mew=0, alpha=0.5)
        axes.plot(at, values.median(skipna=False), **look, ms=7, mfc="white", mew=1.6, label=STRONGER.label)
    ends_of_lines = ((always, "always"), (never, "never"))
    for values, name in ends_of_lines:
        look = LOOKS[name]
        axes.axhline(values.median(), color=look.color, linestyle=look.line, linewidth=1, zorder=0, label=look.label)
    half = (always.mean() + never.mean()) / 2
    axes.axhline(half, color="0.5", linewidth=0.6, dashes=(8, 4), zorder=0, label="half of the gain")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set(xlabel="epoch of the switch", ylabel="test error at the end")


def _over_epochs(axes: Axes, rows: pd.DataFrame, metric: str, claimed: Mapping[str, float]) -> None:
    """Draw a metric over epochs: the median over seeds, with the seeds where the claims are about a switch.

    Args:
        axes: the axes to draw in.
        rows: the rows of the panel.
        metric: the column.
        claimed: the epoch of the switch that the claims are about, by the name of the timing. Other switches are thin.
    """
    for name, switch, part in by_arm(rows):
        if name == "stronger":
            continue
        is_claimed = switch is None or switch == claimed[name]
        draw_curve(axes, part, "epoch", metric, LOOKS[name], is_claimed)
        if is_claimed and switch is not None:
            axes.axvline(switch, color=LOOKS[name].color, linewidth=0.7, linestyle=":", zorder=0)
    logarithmic(axes.yaxis)


def draw_curve(axes: Axes, rows: pd.DataFrame, x: str, metric: str, look: Look, is_main: bool) -> None:
    """Draw a metric over the run: the median over seeds; of a main curve thick, with the seeds as thin lines.

    Log lines before the first update are left out, since they are the same for all.
    """
    by_seed = rows[rows["step"] > 0].pivot_table(index=x, columns="seed", values=metric)
    drawn = {"color": look.color, "linestyle": look.line}
    if is_main:
        axes.plot(by_seed.index, by_seed, **drawn, linewidth=0.4, alpha=0.4)
    width = 1.8 if is_main else 0.8
    axes.plot(by_seed.index, by_seed.median(axis=1, skipna=False), **drawn, linewidth=width, label=look.label)


def logarithmic(axis: Axis) -> None:
    """Make an axis logarithmic, with numbers at powers of ten, and at more the fewer of these are in its range."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    subs = (1, 1.5, 2, 3, 5, 7) if high < 12 * low else (1, 2, 5) if high < 100 * low else (1,)
    axis.set_major_locator(MaxNLocator(5) if high < 3 * low else LogLocator(subs=subs))
    axis.set_major_formatter(StrMethodFormatter("{x:g}") if high < 100 * low else LogFormatterSciNotation())
    axis.set_minor_formatter(NullFormatter())
