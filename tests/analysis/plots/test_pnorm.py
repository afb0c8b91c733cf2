"""The plots of P2: which runs are drawn, and where."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from wdlab.analysis.plots import pnorm

PANEL = {"panel": "mlp", "title": "Digits"}
SEEDS = (0, 1, 2)
SPREAD = {0: -0.01, 1: 0.0, 2: 0.02}  # of the accuracy over seeds, with median 0


def setting(regularizer, strength, zeros, accuracy, p=None, goal=None, validation=None) -> list[dict]:
    """The last rows of a setting's three seeds, whose accuracies have the given median; ``validation`` is a loss."""
    return [
        {
            "panel": "mlp",
            "run": f"{regularizer}-{p}-{strength}-{goal}-{seed}",
            "regularizer": regularizer,
            "seed": seed,
            "regularizer.strength": strength,
            "regularizer.p": p,
            "regularizer.zeros": goal,
            "step": 100,
            "sparsity/weights": zeros,
            "val/accuracy": accuracy,
            "val/loss": 1 - accuracy if validation is None else validation,
            "test/accuracy": accuracy + SPREAD[seed],
        }
        for seed in SEEDS
    ]


@pytest.fixture
def table():
    rows = [
        *setting("pnorm", 0.1, 0.5, 0.90, p=0.8),
        *setting("pnorm", 0.2, 0.95, 0.88, p=0.8),
        *setting("pnorm", 0.1, 0.0, 0.91, p=1.5),
        *setting("pnorm", 0.2, 0.1, 0.92, p=1.5),
        *setting("decoupled", 0.1, 0.0, 0.93, validation=0.4),
        *setting("decoupled", 0.2, 0.0, 0.92, validation=0.3),
    ]
    for strength in (0.1, 0.3):
        for goal in (0.5, 0.9):
            rows += setting("magnitude_pruning", strength, goal, 0.95 - goal / 10 - strength / 10, goal=goal)
    return pd.DataFrame(rows)


@pytest.fixture
def draw():
    figures = []

    def drawn(table, panel=PANEL):
        figures.append(pnorm.fig5(table, [panel]))
        return figures[-1]

    yield drawn
    for figure in figures:
        mpl.pyplot.close(figure)


def lines(axes: mpl.axes.Axes, marker: str, solid: bool = True) -> list[tuple[np.ndarray, np.ndarray]]:
    """The places of the lines with a marker; with ``solid=False`` those of the pale markers of the seeds."""
    found = [line for line in axes.lines if line.get_marker() == marker and (line.get_alpha() is None) == solid]
    return [(np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)) for line in found]


def test_a_line_joins_the_medians_of_the_strengths_and_every_seed_is_a_marker(draw, table):
    axes = draw(table).axes[0]
    ((x, y),) = lines(axes, "s")
    assert x == pytest.approx([0.5, 0.05]) and y == pytest.approx([0.90, 0.88])
    ((_, seeds),) = lines(axes, "s", solid=False)
    assert sorted(seeds) == pytest.approx([0.87, 0.88, 0.89, 0.90, 0.90, 0.92])


def test_lines_of_pruning_run_over_the_share_of_zeros_one_for_each_strength(draw, table):
    axes = draw(table).axes[0]
    weak, strong = lines(axes, "P")
    assert weak[0] == pytest.approx([0.5, 0.1]) and weak[1] == pytest.approx([0.89, 0.85])
    assert strong[0] == pytest.approx([0.5, 0.1]) and strong[1] == pytest.approx([0.87, 0.83])
    assert [text.get_text() for text in axes.texts if text.get_text() != "no or few zeros"] == ["s = 0.1", "s = 0.3"]


def test_adamw_is_a_line_at_its_setting_with_the_lowest_validation_loss_not_the_highest_accuracy(draw, table):
    axes = draw(table).axes[0]
    (level,) = [line for line in axes.lines if str(line.get_label()).startswith("p = 2 (AdamW)")]
    assert set(level.get_ydata()) == {0.92}
    (band,) = [patch for patch in axes.patches if patch.get_label() == "p = 2 (AdamW), range over seeds"]
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.91, 0.94))


def test_methods_without_zeros_stand_in_a_marked_strip_left_of_100_percent_and_are_not_joined(draw, table):
    axes = draw(table).axes[0]
    assert {line.get_linestyle() for line in axes.lines if line.get_marker() == "^"} == {"None"}
    assert "no or few zeros" in [text.get_text() for text in axes.texts]
    without = draw(table[table["regularizer.p"] != 1.5]).axes[0]
    assert "no or few zeros" not in [text.get_text() for text in without.texts]
    ((x, y),) = lines(axes, "^")
    assert x[0] == x[1] > 1 and sorted(y) == pytest.approx([0.91, 0.92])
    left, right = axes.get_xlim()
    assert left > x[0] > right


def test_a_setting_of_which_a_run_diverged_is_not_drawn_and_no_best_setting_either(draw, table):
    lost = (table["seed"] == 1) & (table["regularizer.strength"] == 0.2)
    metrics = ["test/accuracy", "val/accuracy", "val/loss", "sparsity/weights"]
    table.loc[lost & table["regularizer"].isin(["pnorm", "decoupled"]), metrics] = np.nan
    axes = draw(table).axes[0]
    ((x, _),) = lines(axes, "s")
    assert x == pytest.approx([0.5])
    (level,) = [line for line in axes.lines if str(line.get_label()).startswith("p = 2 (AdamW)")]
    assert set(level.get_ydata()) == {0.93}


def test_the_region_near_adamw_is_drawn_only_where_a_run_has_more_than_90_percent_zeros(draw, table):
    def regions(rows):
        return [c for axes in draw(rows).axes for c in axes.collections if "90 % zeros" in str(c.get_label())]

    (region,) = regions(table)
    corners = region.get_paths()[0].get_extents()
    assert corners.xmax == pytest.approx(0.1) and corners.ymin == pytest.approx(0.91)
    assert regions(table[table["sparsity/weights"] < 0.9]) == []


def test_published_runs_are_diamonds_in_axes_of_their_own(draw, table):
    runs = [
        {"regularizer": "decoupled", "zeros": 0.0, "test/accuracy": 0.94},
        {"regularizer": "pnorm", "p": 0.8, "zeros": 0.953, "test/accuracy": 0.93},
    ]
    figure = draw(table, PANEL | {"reference": {"title": "Author", "runs": runs}})
    assert [axes.get_title() for axes in figure.axes] == ["Digits", "Author"]
    places = [(x.tolist(), y.tolist()) for x, y in lines(figure.axes[1], "D")]
    assert places[:2] == [([pytest.approx(0.047)], [0.93]), ([1.0], [0.94])] and places[2:] == [([], [])]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels.count("p = 0.8") == 1 and "author's runs (chosen on the test set, one seed)" in labels
    assert lines(figure.axes[0], "D") == []


def test_the_x_axis_has_numbers_within_a_power_of_ten(draw, table):
    axes = draw(table).axes[0]
    right, left = sorted(axes.get_xlim())
    shown = [axes.xaxis.get_major_formatter()(tick) for tick in axes.xaxis.get_majorticklocs() if right < tick < left]
    assert sorted(shown, key=lambda text: -float(text.split()[0])) == ["100 %", "50 %", "20 %", "10 %", "5 %"]


def test_the_bar_of_zeros_and_the_sizes_between_zero_and_1e_4_have_their_numbers(table):
    sizes = pd.concat(
        [
            pd.DataFrame({"log10_size": [-2.0, -1.75], "share": [0.3, 0.7 - zero], "zero": zero}).assign(
                middle=zero / 10, panel="mlp", run=f"{p}-{seed}", regularizer="pnorm", seed=seed, **{"regularizer.p": p}
            )
            for p, zero in ((0.5, 0.456), (1.5, 0.0))
            for seed in SEEDS
        ]
    ).assign(**{"regularizer.strength": 0.01})
    figure = pnorm.fig6(table, sizes, [PANEL])
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert texts == [
        ["45.6 %", "p = 0.5, s = 0.01", "between zero and 1e-4: 4.6 %"],
        ["0.0 %", "p = 1.5, s = 0.01", "between zero and 1e-4: 0 %"],
    ]
    mpl.pyplot.close(figure)
