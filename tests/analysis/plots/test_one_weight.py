"""fig4's plot: simulated ends and critical strengths, exact curves between them, and exponents in the legend."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from wdlab.analysis.plots.one_weight import fig4
from wdlab.studies import one_weight as shrinkage
from wdlab.studies import quartic
from wdlab.studies.one_weight import one_weight

PANELS = ("paths", "shrinkage", "end_points", "critical")
DECLARED = [{"panel": name, "title": name, "simulate": {"strength": 0.3}} for name in PANELS]


@pytest.fixture
def table():
    parts = (
        one_weight([0.5], [1.0], [0.02, 0.5], 0.1, 0.3, 40, 1),
        one_weight([0.5, 1.5], [0.2, 0.9], None, 0.1, 0.3, 200, 50),
        quartic.end_points(0.7, [1e-2, 1.0], [0.05, 0.3], 0.9, 100),
        quartic.critical_strengths([0.5, 0.8], [1e-4, 1e-3, 1e-2], 1e-2, 0.9, 300, 1e-2),
    )
    return pd.concat([part.assign(panel=name) for name, part in zip(PANELS, parts, strict=True)], ignore_index=True)


@pytest.fixture
def figure(table):
    figure = fig4(table, DECLARED)
    yield figure
    plt.close(figure)


def curves(axes: plt.Axes) -> list[np.ndarray]:
    """The points (x, y) of the thin lines without markers."""
    return [line.get_xydata() for line in axes.lines if line.get_marker() == "None" and line.get_linewidth() == 1]


def jump(curve: np.ndarray) -> np.ndarray:
    """The x of the points between which a curve jumps."""
    k = np.argmax(np.abs(np.diff(curve[:, 1])))
    return curve[k : k + 2, 0]


def test_exact_ends_over_the_target_are_the_limits_of_gradient_flow_with_the_jump_of_p_below_1(figure):
    for axes in figure.axes[2:4]:
        drawn = curves(axes)
        assert len(drawn) == 2
        for p, curve in zip((0.5, 1.5), drawn, strict=True):
            checked = curve[(curve[:, 1] == 0) & (curve[:, 0] < curve[curve[:, 1] > 0, 0].min()) | (curve[:, 1] > 0.2)]
            exact = [shrinkage.fixed_point(p, 0.3, target, target) for target in checked[:, 0]]
            np.testing.assert_allclose(checked[:, 1], exact, atol=1e-9)
        before, after = jump(drawn[0])
        assert before == after


def test_exact_ends_over_the_strength_are_the_limits_of_gradient_flow_and_jump_at_the_critical_strength(figure):
    drawn = curves(figure.axes[4])
    for start, curve in zip((1e-2, 1.0), drawn, strict=True):
        before, after = jump(curve)
        assert before == after == pytest.approx(quartic.critical_strength(0.7, start), rel=1e-2)
        alive = curve[(curve[:, 1] > 0.15) & (curve[:, 0] < before)]
        exact = [quartic.fixed_point(0.7, s, start) for s in alive[:, 0]]
        np.testing.assert_allclose(alive[:, 1], exact, atol=1e-9)
    (minimum,) = [
        line.get_xydata() for line in figure.axes[4].lines if line.get_linewidth() == 5 and len(line.get_xdata())
    ]
    below, above = 0.999 * jump(minimum)[0], 1.01 * jump(minimum)[0]
    assert quartic.minimum(0.7, below) > 0 == quartic.minimum(0.7, above)


def test_bars_are_drawn_only_where_a_weight_does_not_settle(figure, table):
    last = table[(table["panel"] == "shrinkage") & (table["step"] == 200)]
    for axes, form in zip(figure.axes[2:4], ("lp", "pnorm"), strict=True):
        bars = [segment for bar in axes.collections for segment in bar.get_segments()]
        assert len(bars) == (last.loc[last["regularizer"] == form, "jumps"] > 0).sum()
        assert (len(bars) > 0) == (form == "lp")


def test_the_last_row_shows_ends_over_strength_and_critical_strengths_over_the_start(figure, table):
    over_strength, critical = figure.axes[4:]
    ends = {line.get_label(): line.get_ydata() for line in over_strength.lines}
    assert ends["from 0.01"][1] == 0 < ends["from 1"][1] < ends["from 1"][0]
    points = {str(line.get_label()): line.get_ydata() for line in critical.lines if line.get_marker() != "None"}
    exponents = table.dropna(subset=["exponent"]).groupby("p")["exponent"].first()
    assert list(points) == [f"p = {p:g}: exponent {exponent:.3f}" for p, exponent in exponents.items()]
    for p, drawn in zip((0.5, 0.8), points.values(), strict=True):
        exact = [quartic.critical_strength(p, start) for start in (1e-4, 1e-3, 1e-2)]
        np.testing.assert_allclose(drawn, exact, rtol=2e-2)
    for p, curve in zip((0.5, 0.8), curves(critical), strict=True):
        np.testing.assert_allclose(curve[:, 1], [quartic.critical_strength(p, start) for start in curve[:, 0]])
