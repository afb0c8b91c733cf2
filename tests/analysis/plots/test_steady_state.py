"""The plot of study2: which runs are drawn where, and what they are drawn against."""

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from wdlab.analysis import declaration
from wdlab.analysis.plots import steady_state

PANEL = {"panel": "digits", "title": "Digits", "falls": {"optimizer.lr": 0.5, "regularizer.strength": 0.01}}
ARMS = (  # optimizer, momentum, schedule, decay over time, learning rate, strength
    *(("sgd", 0.0, "constant", "constant", a, s) for a, s in itertools.product((0.2, 0.5, 1.0), (0.003, 0.01))),
    ("sgd", 0.0, "cosine", "constant", 0.5, 0.01),
    ("sgd", 0.0, "cosine", "corrected", 0.5, 0.01),
    ("sgd", 0.9, "constant", "constant", 0.03, 0.01),
    ("adam", np.nan, "constant", "constant", 0.01, 0.1),
    ("adam", np.nan, "constant", "constant", 0.01, 1.0),
)
COLUMNS = ("optimizer", "optimizer.momentum", "lr_schedule", "regularizer.over_time", "optimizer.lr")
STEPS = (0, 100, 200, 300, 400)
FALLS = {0: 1.0, 100: 1.0, 200: 0.5, 300: 0.25, 400: 0.1}  # factor of the learning rate that falls


@pytest.fixture
def table():
    """Runs in their steady state, but for a factor of 1 + seed in the second half, and 9 in the first."""
    rows = []
    for (number, arm), seed in itertools.product(enumerate(ARMS), (0, 1)):
        *settings, strength = arm
        for step in STEPS:
            factor = FALLS[step] if "cosine" in arm else 1.0
            corrected = factor if "corrected" in arm else 1.0
            steady = (2 * strength * corrected / (settings[-1] * factor)) ** 0.5
            off = (1 + seed) if step > 200 else 9.0
            metrics = {"steady": steady, steady_state.RATIO: steady * off, steady_state.ROTATION: off}
            if step == 0:
                metrics = dict.fromkeys(metrics, np.nan) | {"steady": steady}
            rows.append(
                {
                    "panel": "digits",
                    "run": f"{number} {seed}",
                    "seed": seed,
                    **dict(zip(COLUMNS, settings, strict=True)),
                }
                | {"regularizer.strength": strength, "step": step, **metrics}
            )
    return pd.DataFrame(rows)


@pytest.fixture
def axes(table):
    figure = steady_state.study2(table, [PANEL])
    yield figure.axes
    mpl.pyplot.close(figure)


def named(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_a_point_is_a_run_of_sgd_at_a_constant_rate_against_its_steady_state(axes):
    drawn = named(axes[0])
    assert list(drawn) == ["a = 0.2", "a = 0.5", "a = 1"]
    for a, line in zip((0.2, 0.5, 1.0), drawn.values(), strict=True):
        expected = {((2 * s / a) ** 0.5, (1 + seed) * (2 * s / a) ** 0.5) for s in (0.003, 0.01) for seed in (0, 1)}
        found = sorted(zip(line.get_xdata(), line.get_ydata(), strict=True))
        assert np.array(found) == pytest.approx(np.array(sorted(expected)))


def test_the_ratio_is_drawn_with_the_steady_state_of_its_own_rate_and_strength(axes):
    drawn = named(axes[1])
    assert list(drawn) == [arm.look.label for arm in steady_state.FALLING] + ["its steady state"]
    assert axes[1].get_title() == "SGD, a = 0.5, s = 0.01"
    for arm, at_the_end in zip(steady_state.FALLING, (0.2, (2 * 0.01 / 0.05) ** 0.5, 0.2), strict=True):
        assert drawn[arm.look.label].get_ydata()[-1] == pytest.approx(1.5 * at_the_end)
        thin = [line for line in axes[1].lines if line.get_linewidth() == 0.8 and line.get_color() == arm.look.color]
        assert thin[0].get_ydata()[-1] == pytest.approx(at_the_end)


def test_the_rotation_of_each_optimizer_is_drawn(axes):
    drawn = named(axes[2])
    assert list(drawn) == ["SGD", "SGD, momentum 0.9", "AdamW, a s = 0.01", "AdamW, a s = 0.001"]
    for line in drawn.values():
        assert list(line.get_xdata()) == [100, 200, 300, 400] and list(line.get_ydata()) == [9, 9, 1.5, 1.5]


@pytest.mark.parametrize("scale", declaration.SCALES)
def test_the_declared_runs_are_those_that_the_plot_tells_apart(scale):
    declared = declaration.read("study2", scale)
    for panel in declared["at"]["panels"]:
        lines = [
            dict(word.split("=", 1) for word in line) for vary in panel["vary"] for line in declaration._lines(vary)
        ]
        falling = [line for line in lines if line["lr_schedule"] == "cosine"]
        assert [line["regularizer/over_time"] for line in falling] == ["constant", "corrected"]
        falls = {(float(line["optimizer.lr"]), float(line["regularizer.strength"])) for line in falling}
        assert falls == {tuple(panel["falls"].values())}
        kinds = [(line["optimizer"], line.get("optimizer.momentum")) for line in lines]
        assert kinds.count(("sgd", "0.9")) == 1 and kinds.count(("adam", None)) == 2
