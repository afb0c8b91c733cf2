"""The plot of norms over steps: medians, the dotted level, and the share of seeds with the penalty in force."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from wdlab.analysis.plots import coherence
from wdlab.analysis.plots.strong import LOOKS

PANELS = [{"panel": "above", "title": "L2, s = 1"}]
STEPS = np.arange(0, 60, 10)


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "panel": "above",
            "run": f"{seed}",
            "seed": seed,
            "regularizer": "l2",
            "regularizer.over_time": "constant",
            "step": step,
            "norm/weight_l2": scale * 10.0 ** -(step / 50),
            "gradient/full_weights_norm": scale * 2.0,
            "gradient/coherence": np.nan if step == 0 else 0.5 * scale,
            "strength": float(seed == 0 or step > 20),
        }
        for seed, scale in enumerate((1.0, 1.1, 3.0))
        for step in STEPS
    )


@pytest.fixture
def axes(table):
    figure = coherence.fig9(table, pd.DataFrame(), PANELS)
    yield figure.axes
    mpl.pyplot.close(figure)


def thick(axes):
    (line,) = [line for line in axes.lines if line.get_linewidth() == coherence.NARROWEST]
    assert line.get_color() == LOOKS["constant", None].color
    return line.get_xydata().T


def test_thick_lines_are_medians_and_every_seed_has_a_thin_one(axes):
    steps, values = thick(axes[0])
    assert steps == pytest.approx(STEPS) and values == pytest.approx(1.1 * 10.0 ** -(STEPS / 50))
    assert len([line for line in axes[0].lines if line.get_linewidth() == 0.5]) == 3
    assert axes[0].get_yscale() == axes[1].get_yscale() == "log" and axes[2].get_yscale() == "linear"


def test_a_dotted_line_is_at_a_fifth_of_the_first_value(axes):
    for one, first in ((axes[0], 1.1), (axes[1], 2.2)):
        (level,) = [line for line in one.lines if line.get_linestyle() == ":"]
        assert level.get_ydata() == pytest.approx([0.2 * first] * 2)


def test_the_share_in_force_is_over_seeds_and_log_lines_after_the_first(axes):
    steps, shares = thick(axes[3])
    assert steps == pytest.approx(STEPS[1:])
    third = 1 / 3
    assert shares == pytest.approx(
        [(2 * third + 1) / 3, (2 * third + 2) / 4, (2 * third + 3) / 5, (third + 3) / 4, 1.0]
    )


def test_a_constant_penalty_is_seen_where_a_gate_has_the_same_values(table):
    gate = {"regularizer.over_time": "coherent", "regularizer.over_time.coherence": "total_gradient"}
    figure = coherence.fig9(pd.concat([table, table.assign(**gate)]), pd.DataFrame(), PANELS)
    for axes in figure.axes:
        constant, of_gate = (
            [line for line in axes.lines if line.get_color() == LOOKS[method].color and line.get_linewidth() > 1]
            for method in (("constant", None), ("coherent", "total_gradient"))
        )
        assert constant[0].get_linewidth() < of_gate[0].get_linewidth()
        assert constant[0].get_zorder() > of_gate[0].get_zorder()
    seeds = [[line.get_color() for line in axes.lines if line.get_linewidth() == 0.5] for axes in figure.axes]
    colors = [LOOKS[method].color for method in (("constant", None), ("coherent", "total_gradient"))]
    assert [[of_axes.count(color) for color in colors] for of_axes in seeds] == [[3, 3], [3, 3], [3, 0], [0, 0]]
    mpl.pyplot.close(figure)
