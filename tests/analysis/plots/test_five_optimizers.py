"""The plots of P5 that compare optimizers: which runs are drawn, and where."""

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from wdlab.analysis import declaration
from wdlab.analysis.plots import five_optimizers

SEEDS = (0, 1, 2)
SPREAD = {0: -0.01, 1: 0.0, 2: 0.02}  # of the error over seeds, with median 0
PANEL = {
    "panel": "mlp",
    "title": "Digits",
    "published": {"ResNet-18": {"AdamS": [4.91, 0.04], "SGD": [5.01, 0.03]}, "VGG16": {"AdamS": [6.09, 0.11]}},
    "matched": {"at": 0.02},
}
EPOCHS = {0: 1.0, 2: 1.0, 4: 0.1, 6: 0.1}  # the learning rate in force by epoch


def setting(optimizer, regularizer, strength, error, validation, over_time=None) -> list[dict]:
    """The rows of three seeds of a setting; ``error`` is the median at the end, ``validation`` a loss."""
    return [
        {
            "panel": "mlp",
            "run": f"{optimizer}-{regularizer}-{over_time}-{strength}-{seed}",
            "optimizer": optimizer,
            "regularizer": regularizer,
            "seed": seed,
            "regularizer.over_time": over_time,
            "regularizer.strength": strength,
            "step": 10 * epoch,
            "epoch": float(epoch),
            "lr": lr,
            "strength": strength * lr,
            "train/loss": strength + 0.01,
            "val/loss": validation,
            "test/error": error + SPREAD[seed] + (6 - epoch) / 10,
            "gradient/full_norm": strength,
            **{metric: 100 * strength for metric, _ in five_optimizers.SHARPNESS},
        }
        for seed in SEEDS
        for epoch, lr in EPOCHS.items()
    ]


@pytest.fixture
def table():
    rows = [
        *setting("adam", "scheduled", 0.01, 0.05, validation=0.4),
        *setting("adam", "scheduled", 0.1, 0.06, validation=0.3),
        *setting("adam", "decoupled", 0.2, 0.07, validation=0.4, over_time="constant"),
        *setting("adam", "decoupled", 0.3, 0.08, validation=0.4, over_time="multistep"),
        *setting("sgd", "l2", 0.4, 0.09, validation=0.4),
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def draw():
    figures = []

    def drawn(plot, table, panel=PANEL):
        figures.append(plot(table, [panel]))
        return figures[-1]

    yield drawn
    for figure in figures:
        mpl.pyplot.close(figure)


def thick(axes) -> dict[str, tuple[list, list]]:
    """The places of the lines that have a label, by label."""
    lines = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}


def test_every_optimizer_has_one_name_and_corrected_decay_is_told_from_adamw(table):
    named = {look.label: set(rows["regularizer.strength"]) for look, rows in five_optimizers.by_optimizer(table)}
    assert named == {"AdamS": {0.01, 0.1}, "AdamW": {0.2}, "AdamC": {0.3}, "SGD": {0.4}}
    without = table[table["regularizer.over_time"].isna()].drop(columns="regularizer.over_time")
    assert [look.label for look, _ in five_optimizers.by_optimizer(without)] == ["AdamS", "SGD"]


@pytest.mark.parametrize("name", ["fig16", "fig18"])
@pytest.mark.parametrize("scale", declaration.SCALES)
def test_every_declared_run_is_of_a_known_optimizer(name, scale):
    for panel in declaration.read(name, scale)["at"]["panels"]:
        for line in panel["vary"]:
            words = dict(override.split("=", 1) for override in line)
            constant = words.get("regularizer/over_time", "constant") == "constant"
            assert (words["optimizer"], words["regularizer"], constant) in five_optimizers.LOOKS


def test_the_median_of_the_strength_with_the_lowest_mean_validation_loss_is_drawn(draw, table):
    axes = draw(five_optimizers.fig16, table).axes
    epochs, errors = thick(axes[0])["AdamS"]
    assert epochs == [2, 4, 6] and errors == pytest.approx([0.46, 0.26, 0.06])
    assert thick(axes[3])["AdamS"][1] == pytest.approx([0.1] * 3)
    assert thick(axes[4])["AdamC"][1] == pytest.approx([0.3, 0.03, 0.03])
    assert axes[2].get_yticklabels()[0].get_text() == "AdamS, s = 0.1"


def test_strengths_on_a_schedule_are_steps_and_those_by_gradients_are_not(draw, table):
    axes = draw(five_optimizers.fig16, table).axes[4]
    styles = {line.get_label(): line.get_drawstyle() for line in axes.lines}
    assert styles["AdamC"] == styles["SGD"] == "steps-pre" and styles["AdamS"] == "default"


@pytest.mark.parametrize("lines", [4, 10, 200])
def test_markers_of_neighbours_are_at_other_places(draw, table, lines):
    parts = [table[table["epoch"] == 6].assign(epoch=1.0 + line) for line in range(lines)]
    axes = draw(five_optimizers.fig16, pd.concat(parts)).axes[0]
    drawn = [line.get_markevery() for line in axes.lines if line.get_markevery()]
    places = [set(range(first, lines, every)) for first, every in drawn]
    assert len(places) == 4 and all(places)
    assert not any(one & other for one, other in itertools.pairwise(places))


def test_a_setting_of_which_a_run_diverged_is_not_chosen(draw, table):
    ended = (table["regularizer.strength"] == 0.1) & (table["seed"] == 1) & (table["epoch"] == 6)
    table.loc[ended, ["val/loss", "test/error"]] = np.nan
    assert thick(draw(five_optimizers.fig16, table).axes[0])["AdamS"][1] == pytest.approx([0.45, 0.25, 0.05])
    table.loc[table["regularizer"] == "scheduled", "val/loss"] = np.nan
    assert "AdamS" not in thick(draw(five_optimizers.fig16, table).axes[0])


def test_means_and_deviations_stand_next_to_the_published_ones(draw, table):
    axes = draw(five_optimizers.fig16, table).axes
    assert axes[2].texts[0].get_text() == "6.33 (1.53)"
    assert [text.get_text() for text in axes[5].texts] == ["4.91 (0.04)", "5.01 (0.03)", "6.09 (0.11)"]
    names = [text.get_text() for text in axes[5].get_yticklabels()]
    assert names == ["AdamS, ResNet-18", "SGD, ResNet-18", "AdamS, VGG16"]


def test_the_falls_of_the_learning_rate_are_marked(draw, table):
    axes = draw(five_optimizers.fig16, table).axes[0]
    falls = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":" and len(line.get_xdata()) == 2]
    assert falls == [2.0]


def test_sharpness_is_drawn_over_the_train_loss_with_a_line_per_optimizer(draw, table):
    figure = draw(five_optimizers.fig18, table)
    assert len(figure.axes) == len(five_optimizers.SHARPNESS)
    loss, sharpness = thick(figure.axes[0])["AdamS"]
    assert loss == pytest.approx([0.02, 0.11]) and sharpness == pytest.approx([1, 10])
    assert thick(figure.axes[0])["train loss of the claims"][0] == [0.02, 0.02]


def test_the_matched_train_loss_may_be_a_distance_from_the_lowest(draw, table):
    figure = draw(five_optimizers.fig18, table, PANEL | {"matched": {"within": 0.05}})
    assert thick(figure.axes[3])["train loss of the claims"][0] == pytest.approx([0.07, 0.07])
