"""The plots of strong regularization: where lines go, what is grey, and what is told of a gate."""

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from wdlab.analysis.plots import strong
from wdlab.analysis.plots.strong import THRESHOLD

PANELS = [{"panel": "l2", "title": "Digits, L2"}, {"panel": "l2_thresholds", "title": "L2, s = 0.1", "beside": "l2"}]
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
CONSTANT = {0.001: 0.9, 0.01: 0.8, 0.1: 0.1, 1.0: 0.1}
GATE = {"regularizer.over_time": "coherent", "regularizer.over_time.coherence": "total_gradient"}


@pytest.fixture
def measured():
    """A constant penalty that fails from 0.1 on, and a gate that is closed at 1; seeds differ by 0.02."""
    rows = []
    for seed, strength in itertools.product((0, 1, 2), STRENGTHS):
        off = 0.02 * (seed - 1) * (CONSTANT[strength] > 0.1)
        base = {"panel": "l2", "seed": seed, "regularizer": "l2", "regularizer.strength": strength}
        base |= {"val_loss": 1 - CONSTANT[strength]}
        own = {
            "regularizer.over_time": "constant",
            "mean_strength": strength,
            "test_accuracy": CONSTANT[strength] + off,
        }
        gate = {"mean_strength": 0.5 * strength * (strength < 1), "test_accuracy": 0.85, "val_loss": 0.2}
        gate |= {"share_in_force": 0.5, THRESHOLD: 0.9}
        rows += [base | own | {"share_in_force": 1.0}, base | GATE | gate]
    for seed, threshold in itertools.product((0, 1), (0.3, 0.9)):
        of_gate = {THRESHOLD: threshold, "share_in_force": threshold / 2}
        at = {"panel": "l2_thresholds", "seed": seed, "test_accuracy": threshold}
        at |= {"regularizer": "l2", "regularizer.strength": 0.1}
        rows.append(GATE | of_gate | at)
    return pd.DataFrame(rows)


@pytest.fixture
def draw():
    figures = []

    def _draw(*arguments, plot=strong.fig8):
        figures.append(plot(pd.DataFrame(), *arguments))
        return figures[-1].axes

    yield _draw
    for figure in figures:
        mpl.pyplot.close(figure)


def thick(axes, color) -> list[np.ndarray]:
    """The points (x, y) of each line of medians of a colour."""
    return [
        line.get_xydata() for line in axes.lines if line.get_color() == color and line.get_linewidth() in (1.1, 1.6)
    ]


def test_medians_by_strength_and_grey_where_the_constant_penalty_fails_in_every_seed(draw, measured):
    axes = draw(measured, PANELS)[0]
    ((line),) = thick(axes, strong.LOOKS[strong.CONSTANT, None].color)
    assert line == pytest.approx(np.array([*CONSTANT.items()]))
    (grey,) = axes.patches
    assert (grey.get_x(), grey.get_x() + grey.get_width()) == (0.1, 1.0)
    one_learns = measured["seed"].eq(0) & measured["regularizer.strength"].eq(0.1)
    measured.loc[one_learns & measured["regularizer.over_time"].eq("constant"), "test_accuracy"] = 0.5
    (grey,) = draw(measured, PANELS)[0].patches
    assert (grey.get_x(), grey.get_width()) == (1.0, 0.0)


def test_where_a_gate_closes_at_a_stronger_penalty_no_line_leads_there(draw, measured):
    axes = draw(measured, PANELS)[0]
    open_gate, closed = thick(axes, strong.LOOKS["coherent", "total_gradient"].color)
    assert open_gate[:, 0] == pytest.approx(STRENGTHS[:3]) and closed[:, 0] == pytest.approx(STRENGTHS[3:])
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()].count(
        "gate: cosine with the total gradient"
    ) == 1


def test_a_line_is_at_the_strength_of_the_claims(draw, measured):
    (line,) = [
        one for one in draw(measured, [PANELS[0] | {"judged": 0.1}])[0].lines if one.get_label() == strong.JUDGED
    ]
    assert line.get_xdata() == [0.1, 0.1]


def test_a_projected_penalty_is_apart_from_a_constant_one(measured):
    own = {"regularizer": "coherent", "regularizer.over_time": None, "regularizer.over_time.coherence": None}
    constant = measured[measured["regularizer.over_time"] == "constant"]
    methods = dict(strong.by_method(pd.concat([measured, constant.assign(**own)])))
    assert len(methods[strong.LOOKS[strong.PROJECTED, None]]) == len(constant)
    assert len(methods[strong.LOOKS["constant", None]]) == len(constant)


def test_a_ring_is_at_the_lowest_mean_validation_loss(draw, measured):
    axes = draw(measured, PANELS)[0]
    rings = [line for line in axes.lines if line.get_markersize() >= strong.LEAST_RING and len(line.get_xydata())]
    assert rings[0].get_xydata() == pytest.approx(np.array([[0.001, 0.9]]))
    assert rings[0].get_markersize() < rings[1].get_markersize()


def test_a_gate_that_is_closed_in_every_log_line_is_over_a_zero_and_no_line_leads_there(draw, measured):
    axes = draw(measured, PANELS)[1]
    line, alone = thick(axes, strong.LOOKS["coherent", "total_gradient"].color)
    assert line[:, 0] == pytest.approx([0.0005, 0.005, 0.05])
    assert alone == pytest.approx(np.array([[0.0005 / 4, 0.85]]))
    axes.figure.draw_without_rendering()
    ticks = {float(label.get_position()[0]): label.get_text() for label in axes.get_xticklabels()}
    assert [*ticks] == pytest.approx([0.0005 / 4, 0.001, 0.01, 0.1, 1.0])
    assert [text == "0" for text in ticks.values()] == [True, False, False, False, False]


def test_without_a_closed_gate_the_axis_has_no_zero(draw, measured):
    axes = draw(measured[measured["mean_strength"] != 0], PANELS[:1])[1]
    axes.figure.draw_without_rendering()
    assert "0" not in [label.get_text() for label in axes.get_xticklabels()]


def test_below_the_accuracy_at_a_threshold_is_the_share_of_steps_in_force(draw, measured):
    axes = draw(measured, PANELS)
    assert [one.get_title() for one in axes] == ["Digits, L2", "", "L2, s = 0.1", ""]
    color = strong.LOOKS["coherent", "total_gradient"].color
    for one, heights in ((axes[2], (0.3, 0.9)), (axes[3], (0.15, 0.45))):
        line, filled = thick(one, color)
        assert line == pytest.approx(np.array([[0.3, heights[0]], [0.9, heights[1]]]))
        assert filled == pytest.approx(np.array([[0.9, heights[1]]]))  # the threshold of the other columns


def test_without_thresholds_there_are_two_columns(draw, measured):
    assert len(draw(measured, PANELS[:1])) == 2


def test_the_axis_of_accuracy_is_logarithmic_in_the_error(draw, measured):
    transform = draw(measured, PANELS)[0].yaxis.get_transform()
    heights = transform.transform(np.array([0.0, 0.9, 0.99]))
    assert heights[2] - heights[1] == pytest.approx(heights[1] - heights[0])
    assert transform.inverted().transform(heights) == pytest.approx([0.0, 0.9, 0.99])


def test_chance_has_a_number_and_all_markers_are_inside(draw, measured):
    axes = draw(measured, PANELS)[0]
    assert 0.1 in axes.get_yticks() and axes.get_ylim()[0] == pytest.approx(0.05)
    assert measured["test_accuracy"].max() < axes.get_ylim()[1] < 0.96


@pytest.fixture
def compressed():
    rows = []
    for name, over_time, seed in itertools.product(("l1", "pnorm_prox", "magnitude_pruning"), ("constant",), (0, 1, 2)):
        for k, level in enumerate((0.1, 0.2)):
            setting = {"regularizer": name, "regularizer.over_time": over_time, "seed": seed, "panel": "mlp"}
            by = {"regularizer.strength": 0.01, "regularizer.zeros": level}
            by = by if name == "magnitude_pruning" else {"regularizer.strength": level}
            for cut, compression in (("exact", 2 + k), ("one_step", 4 + k)):
                found = {"cut": cut, "compression": compression, "test_accuracy": 0.95 - 0.1 * k}
                rows.append(setting | by | found)
    return pd.DataFrame(rows)


def test_l1_is_read_after_zeroing_and_the_others_as_they_are_with_pruning_in_both(draw, compressed):
    left, right = draw(compressed, [{"panel": "mlp", "title": "Digits"}], plot=strong.fig10)
    color = {name: family[0] for name, family in strong.FAMILIES.items()}
    assert thick(left, color["l1"])[0][:, 0] == pytest.approx([4, 5])
    assert thick(right, color["pnorm_prox"])[0][:, 0] == pytest.approx([2, 3])
    assert [len(thick(axes, color["magnitude_pruning"])) for axes in (left, right)] == [1, 1]
    assert thick(left, color["pnorm_prox"]) == thick(right, color["l1"]) == []
    (band,) = left.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.93, 0.95))


def test_a_line_ends_before_a_dead_network_and_where_a_gate_closes(draw, compressed):
    l1 = compressed["regularizer"] == "l1"
    dead = compressed[l1 & (compressed["regularizer.strength"] == 0.2)]
    dead = dead.assign(**{"regularizer.strength": 0.3, "compression": 100, "test_accuracy": 0.1})
    closed = dead.assign(**{"regularizer.strength": 0.4, "compression": 1, "test_accuracy": 0.96})
    table = pd.concat([compressed, dead, closed])
    left, _ = draw(table, [{"panel": "mlp", "title": "Digits"}], plot=strong.fig10)
    pieces = thick(left, strong.FAMILIES["l1"][0])
    assert [piece[:, 0].tolist() for piece in pieces] == [[4, 5], [100], [1]]


def test_the_legend_lists_penalties_first_then_pruning_and_the_band(draw, compressed):
    axes = draw(compressed, [{"panel": "mlp", "title": "Digits"}], plot=strong.fig10)
    (legend,) = axes[0].figure.legends
    names = ["L1 in the gradient, constant", "soft threshold, constant", "magnitude pruning", strong.BAND]
    assert [text.get_text() for text in legend.get_texts()] == names
