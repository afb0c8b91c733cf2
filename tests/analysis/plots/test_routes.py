"""The plot of the routes through Adam: what is drawn of which route, and where a share is lost."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from wdlab.analysis.plots import routes

STRENGTHS = np.array([1e-3, 1e-2, 1e-1, 1.0])
SCORES = np.array([0.9, 0.9, 0.5, 0.0])
NORMS = np.array([10.0, 8.0, 5.0, 1.0])
PANEL = {"panel": "p", "title": "Digits", "score": "score (accuracy)"}
UNITS = {"both": 1.0, "first": 1.0, "separate": 1.0, "second": 30.0, "decoupled": 100.0}


def run(route: str | None, strength: float, seed: int, score: float, norm: float) -> dict:
    settings = {"regularizer": "l2" if route else "none", "regularizer.route": route, "regularizer.strength": strength}
    ends = {"seed": seed, "step": 10, "score": score, "norm/weight_l2": norm * (1 + 0.01 * seed)}
    return {"panel": "p", "run": f"{route}-{strength}-{seed}"} | settings | ends


@pytest.fixture
def table():
    """Three seeds, of which the strengths of each route have another unit and are otherwise alike."""
    points = [*zip(STRENGTHS, SCORES, NORMS, strict=True)]
    decayed = [
        run(route, strength * unit, seed, score, norm)
        for route, unit in UNITS.items()
        for strength, score, norm in points
        for seed in range(3)
    ]
    return pd.DataFrame([*decayed, *(run(None, np.nan, seed, 0.88, 10.0) for seed in range(3))])


@pytest.fixture
def axes(table):
    figure = routes.fig14(table, [PANEL])
    yield figure.axes
    mpl.pyplot.close(figure)


def test_the_routes_are_drawn_over_strength_and_over_the_norm_in_units_of_that_without_decay(axes):
    named = {line.get_label(): line for line in axes[0].lines if not line.get_label().startswith("_")}
    assert [*named] == [look.label for look in routes.LOOKS.values()]
    for route, unit in UNITS.items():
        line = named[routes.LOOKS[route].label]
        assert line.get_xdata() == pytest.approx(STRENGTHS * unit) and line.get_ydata() == pytest.approx(SCORES)
    over_norm = next(line for line in axes[2].lines if line.get_label() == routes.LOOKS["both"].label)
    assert over_norm.get_xdata() == pytest.approx(NORMS / 10.0)
    crosses = next(line for line in axes[2].lines if line.get_marker() == "x")
    assert crosses.get_xdata() == pytest.approx([1 / 1.01, 1.0, 1.02 / 1.01]) and set(crosses.get_ydata()) == {0.88}


def test_the_strengths_of_loss_are_read_between_the_strengths(table):
    both = table[table["regularizer.route"] == "both"]
    half, inside = routes.strengths_of_loss(both, "score", 0.5)
    assert half == pytest.approx(10 ** (-1 + 0.05 / 0.5)) and inside
    tenth, _ = routes.strengths_of_loss(both, "score", 0.1)
    assert tenth == pytest.approx(10 ** (-2 + 0.09 / 0.4))
    weak, inside = routes.strengths_of_loss(both[both["regularizer.strength"] < 0.05], "score", 0.5)
    assert weak == pytest.approx(0.01) and not inside


def test_the_useful_range_of_a_route_has_the_same_length_in_any_unit(axes):
    texts = [text.get_text() for text in axes[1].texts]
    assert len(set(texts[:5])) == 1 and texts[5] == "decades"
    bars = [line.get_xdata() for line in axes[1].lines if line.get_linewidth() == 6]
    assert [float(np.log10(end / begin)) for begin, end in bars] == pytest.approx([float(texts[0])] * 5, abs=0.05)
    assert bars[4] / bars[0] == pytest.approx(100.0)
    assert [label.get_text() for label in axes[1].get_yticklabels()] == [*UNITS]


def test_a_range_that_the_strengths_do_not_enclose_is_in_parentheses_and_an_empty_one_is_dotted(table):
    both, second = (table["regularizer.route"] == route for route in ("both", "second"))
    table.loc[both & (table["seed"] == 0), "score"] = 0.9  # it is not lost in this seed
    table.loc[second, "norm/weight_l2"] = 10.0 - np.log10(table["regularizer.strength"]) / 100
    figure = routes.fig14(table, [PANEL])
    axes = figure.axes[1]
    in_parentheses = [text.get_text().startswith("(") for text in axes.texts[:5]]
    assert in_parentheses == [True, False, False, True, False]
    dotted = [line for line in axes.lines if line.get_linestyle() == ":" and line.get_linewidth() == 2]
    assert [line.get_ydata()[0] for line in dotted] == [3.25]  # below the row of second
    mpl.pyplot.close(figure)


def test_a_strength_of_loss_has_the_interval_over_seeds(table):
    both = table["regularizer.route"] == "both"
    table.loc[both & (table["seed"] == 2) & (table["regularizer.strength"] == 0.1), "score"] = 0.6
    figure = routes.fig14(table, [PANEL])
    intervals = [line.get_xdata() for line in figure.axes[1].lines if line.get_linewidth() == 1.4]
    assert intervals[0][0] < intervals[0][1] and intervals[1][0] == pytest.approx(intervals[1][1])
    mpl.pyplot.close(figure)
