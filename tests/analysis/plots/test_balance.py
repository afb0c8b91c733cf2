"""The plot of balanced units: every unit of every seed is drawn, in the axes of its method."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from wdlab.analysis.plots import balance

PANEL = {"panel": "mlp", "title": "Digits"}
STRENGTHS = {"none": 0.0, "l2": 0.1}


@pytest.fixture
def axes():
    runs = [
        {"panel": "mlp", "run": f"{name}-{seed}", "regularizer": name, "seed": seed}
        for name in STRENGTHS
        for seed in (0, 1)
    ]
    rows = [
        run | {"step": step, "lr": 0.5, "strength": STRENGTHS[run["regularizer"]], "imbalance": 0.08}
        for run in runs
        for step in (0, 10)
    ]
    units = [
        run | {"step": step, "input_norm": w, "output_norm": v, "in_use": used, "imbalance_in_use": 0.01}
        for run in runs
        for step in (0, 10)
        for w, v, used in ((1.0, 0.5, True), (0.1, 0.0, step == 0 or run["regularizer"] == "none"))
    ]
    figure = balance.fig1(pd.DataFrame(rows), pd.DataFrame(units), [PANEL])
    yield figure.axes
    mpl.pyplot.close(figure)


def dots(axes: mpl.axes.Axes, marker: str) -> int:
    """The number of markers inside the axes."""
    ends = axes.get_xlim()
    places = [line.get_xydata() for line in axes.lines if line.get_marker() == marker]
    return sum(int(((place >= ends[0]) & (place <= ends[1])).all(axis=1).sum()) for place in places)


def test_every_unit_of_every_seed_is_in_the_axes_of_its_method_and_those_not_in_use_are_counted(axes):
    start, without, decayed = axes[1:]
    assert dots(start, "x") == 4 and dots(without, "x") == 4
    assert (dots(decayed, "o"), dots(decayed, "."), dots(without, ".")) == (2, 2, 0)
    assert [[text.get_text() for text in one.texts] for one in (without, decayed)] == [[], ["2 of 4 not in use"]]


def test_the_line_of_gradient_flow_falls_by_the_rate_of_the_method_with_a_strength(axes):
    (flow,) = [line for line in axes[0].lines if line.get_label().startswith("gradient flow")]
    assert flow.get_ydata() == pytest.approx([0.08, 0.08 * np.exp(-4 * 0.5 * 0.1 * 10)])
