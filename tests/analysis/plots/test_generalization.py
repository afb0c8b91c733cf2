"""The plot of P4 about generalization: which runs are drawn, and what ranks them."""

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from wdlab.analysis import declaration
from wdlab.analysis.plots import generalization

PANEL = {
    "panel": "mlp",
    "title": "Digits",
    "update": {"dataset.label_noise": 0.4, "dataset.train_size": 1200, "optimizer.lr": 0.1},
}
ARMS = [(0.0, "constant"), (0.002, "constant"), (0.01, "constant"), (0.01, "early"), (0.01, "late")]
STEPS = (0, 10, 20, 30)


def is_on(over_time: str, step: int) -> bool:
    return {"constant": True, "early": step <= 10, "late": step > 10}[over_time]


@pytest.fixture
def table():
    """Every setting with two seeds. The gap grows with the scale-invariant sharpness and falls with the raw one."""
    random, rows = np.random.default_rng(0), []
    settings = itertools.product((0, 0.4), (300, 1200), (0.02, 0.1), ARMS)
    for number, ((noise, size, lr, (strength, over_time)), seed) in enumerate(itertools.product(settings, (0, 1))):
        for step in STEPS:
            predicted = (2 * lr * strength / 1.9) ** 0.5 if is_on(over_time, step) else 0.0
            angle = (1 + seed) * (0.01 + strength)
            gap = random.normal()
            rows.append(
                {
                    "panel": "mlp",
                    "run": str(number),
                    "regularizer": "l2",
                    "seed": seed,
                    "dataset.label_noise": noise,
                    "dataset.train_size": size,
                    "optimizer.lr": lr,
                    "regularizer.strength": strength,
                    "regularizer.over_time": over_time,
                    "step": step,
                    **{metric: random.normal() for metric, _, _ in generalization.METRICS},
                    "scale_invariant/angular_update": angle if step else np.nan,
                    "update/relative": angle if step else np.nan,
                    "of_predicted": (angle / predicted if predicted else np.inf) if step else np.nan,
                    "gap/loss": gap,
                    "gap/error": gap,
                    "test/error": random.normal(),
                    "sharpness/top_eigenvalue": -gap,
                    "scale_invariant/sharpness": gap**3,
                }
            )
    return pd.DataFrame(rows)


@pytest.fixture
def axes(table):
    figure = generalization.fig12(table, [PANEL])
    yield figure.axes
    mpl.pyplot.close(figure)


def test_the_updates_of_one_cell_are_drawn_as_medians_over_seeds(axes):
    drawn = {line.get_label(): line for line in axes[0].lines if not line.get_label().startswith("_")}
    assert list(drawn) == ["no decay", "decay throughout", "weak decay throughout", "early decay", "late decay"]
    for label, strength in (("no decay", 0), ("decay throughout", 0.01), ("weak decay throughout", 0.002)):
        assert list(drawn[label].get_xdata()) == [10, 20, 30]
        assert drawn[label].get_ydata() == pytest.approx(1.5 * (0.01 + strength))
    assert axes[0].get_title(loc="left").endswith("1,200 images, 40 % wrong labels, a = 0.1, s = 0.01 (weak: 0.002)")


def test_the_predicted_rotation_is_drawn_for_constant_decay(axes):
    steps = [line.get_ydata() for line in axes[0].lines if line.get_drawstyle() == "steps-pre"]
    predicted = sorted(values[0] for values in steps if np.isfinite(values).all())
    assert predicted == pytest.approx([(2 * 0.1 * s / 1.9) ** 0.5 for s in (0.002, 0.01)])
    assert not any(line.get_drawstyle() == "steps-pre" for line in axes[1].lines)


def test_a_line_is_where_decay_is_switched(axes):
    assert {line.get_xdata()[0] for line in axes[0].lines if line.get_linestyle() == ":"} == {10}


def test_each_metric_has_its_rank_correlations(axes):
    rows = [metric for metric, _, _ in generalization.METRICS]
    points = {line.get_ydata()[0]: line.get_xdata()[0] for line in axes[2].lines if line.get_marker() != "None"}
    assert len(points) == len(rows) * len(generalization.KINDS) - 1  # the train loss is not held fixed for itself
    for place in (-0.25, 0.0):
        assert points[rows.index("scale_invariant/sharpness") + place] == 1
        assert points[rows.index("sharpness/top_eigenvalue") + place] == -1
    assert abs(points[rows.index("norm/weight_l2")]) < 0.5
    assert axes[2].get_yticklabels()[0].get_text() == "train loss"


@pytest.mark.parametrize("scale", declaration.SCALES)
def test_at_least_40_runs_of_four_cells_are_ranked_and_all_arms_have_a_look(scale):
    for panel in declaration.read("fig12", scale)["at"]["panels"]:
        cells, arms = {}, set()
        for line in panel["vary"]:
            for run in declaration._lines(line):
                words = dict(word.split("=", 1) for word in run)
                cell = (words["dataset.label_noise"], words["dataset.train_size"])
                cells[cell] = cells.get(cell, 0) + 1
                arms.add((float(words["regularizer.strength"]), words["regularizer/over_time"]))
        runs = sum(cells.values())
        assert len(cells) == 4 and set(cells.values()) == {runs // 4}
        assert runs * len(declaration.seeds(declaration.read("fig12", scale), panel)) >= 40
        strengths = [strength for strength, over_time in arms if over_time == "constant" and strength]
        assert len(strengths) <= len(generalization.LOOKS["constant"])
        assert {over_time for _, over_time in arms} <= set(generalization.LOOKS)
