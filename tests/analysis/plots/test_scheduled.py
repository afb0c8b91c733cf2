"""The plots of P5 over strengths: which runs are drawn, and where."""

import itertools

import numpy as np
import pandas as pd
import pytest

from tests.analysis.plots.conftest import named
from wdlab.analysis.plots import scheduled

SEEDS = (0, 1, 2)
STRENGTHS = (1e-3, 1e-2)
PANEL = {"panel": "p", "title": "Digits"}


def run(optimizer: str, regularizer: str, schedule: str, over_time: str | None, strength: float | None, seed: int):
    """The two last log lines of a run; the full gradient is the strength (or 1e-4) times the seed's factor."""
    falls = schedule == "multistep"
    gradient = (strength or 1e-4) * (1 + 0.1 * (seed - 1)) * (1 if falls else 10)
    return [
        {
            **{"panel": "p", "optimizer": optimizer, "regularizer": regularizer, "seed": seed},
            "run": f"{optimizer}-{regularizer}-{schedule}-{over_time}-{strength}-{seed}",
            **{"lr_schedule": schedule, "regularizer.over_time": over_time, "regularizer.strength": strength},
            **{"step": step, "lr": 1e-3 if falls else 0.1, "gradient/full_norm": gradient, "train/loss": 2 * gradient},
            **{"norm/weight_l2": 2.0, "full_ratio": gradient / 2, "batch_ratio": gradient * (1 if step == 90 else 4)},
        }
        for step in (10, 90, 100)
    ]


def sweep(optimizer: str, decays: list[tuple[str, str, str | None]]) -> pd.DataFrame:
    none = [("none", schedule, None, None) for schedule in ("constant", "multistep")]
    settings = [*none, *((*decay, s) for decay in decays for s in STRENGTHS)]
    rows = itertools.chain(*(run(optimizer, *setting, seed) for setting in settings for seed in SEEDS))
    return pd.DataFrame([*rows])


@pytest.fixture
def sgd():
    both = [("l2", "constant", "constant"), ("l2", "multistep", "constant")]
    return sweep("sgd", [*both, ("l2", "multistep", "multistep"), ("scheduled", "multistep", None)])


def test_full_gradients_are_drawn_by_schedule_as_medians_over_seeds(drawn, sgd):
    constant, falling, by_loss, _ = drawn(scheduled.fig15, sgd)
    assert named(constant)["SGD"] == (pytest.approx(STRENGTHS), pytest.approx([1e-2, 1e-1]))
    assert set(named(constant)) == {"SGD", "no decay, median"}
    assert named(falling)["SGD"] == (pytest.approx(STRENGTHS), pytest.approx(STRENGTHS))
    assert set(named(falling)) == {"SGD", "SGDS", "SGDC", "no decay, median"}
    assert named(by_loss)["SGDS"] == (pytest.approx([2e-3, 2e-2]), pytest.approx(STRENGTHS))
    assert named(falling)["no decay, median"][1] == pytest.approx([1e-4, 1e-4])


def test_the_columns_of_full_gradients_have_one_scale_on_which_all_are_seen(drawn, sgd):
    columns = drawn(scheduled.fig15, sgd)[:3]
    low, high = columns[0].get_ylim()
    assert all(axes.get_ylim() == (low, high) for axes in columns)
    assert low < sgd["gradient/full_norm"].min() and sgd["gradient/full_norm"].max() < high


def test_a_strength_of_which_a_run_diverged_has_no_median(drawn, sgd):
    lost = (sgd["regularizer"] == "scheduled") & (sgd["regularizer.strength"] == 1e-2) & (sgd["seed"] == 1)
    sgd.loc[lost, ["gradient/full_norm", "train/loss"]] = np.nan
    falling = named(drawn(scheduled.fig15, sgd)[1])
    assert falling["SGDS"][0] == pytest.approx([1e-3]) and len(falling["SGD"][0]) == 2


def test_two_explanations_are_drawn_next_to_what_they_explain(drawn, sgd):
    lines = named(drawn(scheduled.fig15, sgd)[3])
    strengths = np.array(STRENGTHS)
    assert lines["balance: |g| / |w| = s"][1] == pytest.approx(strengths)
    assert lines["steady state, constant lr"][1] == pytest.approx(np.sqrt(2 * strengths * 0.1 / 0.1))
    assert lines["steady state, falling lr"][1] == pytest.approx(np.sqrt(2 * strengths * 0.1 / 1e-3))
    assert lines["full gradient, falling lr"][1] == pytest.approx(strengths / 2)
    assert lines["mini-batches, falling lr"][1] == pytest.approx(2 * strengths)  # geometric mean of the two last lines


def test_one_legend_names_every_curve_and_the_runs_without_decay(drawn, sgd):
    axes = drawn(scheduled.fig15, sgd)
    (legend,) = axes[0].figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[:5] == ["SGD", "SGDS", "SGDC", "no decay, median", "no decay, one seed"] and len(labels) == 11
    assert not any(one.get_legend() for one in axes)


def test_two_strengths_are_both_written(drawn, sgd):
    for one in drawn(scheduled.fig15, sgd)[:2]:
        assert [*one.get_xticks()] == pytest.approx(STRENGTHS)


def test_without_runs_of_a_constant_rate_the_second_axes_are_the_first(drawn):
    table = sweep("adam", [("decoupled", "multistep", "constant")])
    constant, falling, *_ = drawn(scheduled.fig15, table[table["lr_schedule"] == "multistep"])
    assert not constant.get_visible()
    assert falling.get_title() == "Digits\nfalling learning rate" and falling.get_ylabel().startswith(
        "norm of the full"
    )


def test_for_adam_the_last_axes_are_over_the_norm_of_the_weights(drawn):
    table = sweep("adam", [("decoupled", "multistep", "constant"), ("decoupled", "multistep", "multistep")])
    axes = drawn(scheduled.fig15, table)
    assert axes[3].get_xlabel() == "norm of the weights |w|"
    assert axes[3].get_ylabel() == "norm of the full gradient |g|"
    assert named(axes[3])["AdamW"] == (pytest.approx([2, 2]), pytest.approx(STRENGTHS))
    assert "AdamC" in named(axes[1])


RATES = (1e-3, 1e-2, 1e-1)


def grid(regularizer: str, slope: float) -> pd.DataFrame:
    """The last rows of a grid whose best strength at the rate 1e-2 is 1e-2."""
    strengths = 10.0 ** np.arange(-4, 1)
    return pd.DataFrame(
        {
            **{"panel": "p", "optimizer": "adam", "regularizer": regularizer, "seed": seed, "step": 10},
            **{"run": f"{regularizer}-{strength}-{rate}-{seed}", "regularizer.strength": strength},
            **{"optimizer.lr": rate, "val/loss": np.exp(off**2), "test/accuracy": 0.95 - 0.02 * off**2 + 0.001 * seed},
        }
        for strength, rate, seed in itertools.product(strengths, RATES, SEEDS)
        for off in [np.log10(strength / 1e-2) - slope * np.log10(rate / 1e-2)]
    )


HEAT = PANEL | {"rates": [1e-3, 1e-2]}


def test_cells_have_mean_errors_and_frames_within_a_point_of_the_best(drawn):
    table = pd.concat([grid("scheduled", 0.0), grid("decoupled", -0.5)])
    axes = {one.get_title().partition(":")[0]: one for one in drawn(scheduled.fig17, table, HEAT)}
    heat = axes["AdamS"]
    assert heat.images[0].get_array()[2].tolist() == pytest.approx([0.049] * 3)
    assert len(heat.patches) == 3 and "20.0 % of the grid" in heat.get_title()
    assert sorted({text.get_text() for text in heat.texts}) == ["12.9", "4.9", "6.9"]
    assert [tick.get_text() for tick in heat.get_xticklabels()] == ["0.001", "0.01", "0.1"]


def test_the_share_in_the_title_is_the_mean_over_seeds_and_not_that_of_the_mean(drawn):
    table = grid("scheduled", 0.0)
    table.loc[table["seed"] == 0, "test/accuracy"] -= 0.024
    heat = drawn(scheduled.fig17, table, HEAT)[0]
    assert len(heat.patches) == 3 and "13.3 % of the grid" in heat.get_title()


def test_a_cell_of_which_a_run_diverged_is_empty(drawn):
    table = grid("scheduled", 0.0)
    table.loc[(table["optimizer.lr"] == 1e-1) & (table["seed"] == 0), ["test/accuracy", "val/loss"]] = np.nan
    heat = drawn(scheduled.fig17, table, HEAT)[0]
    assert np.isnan(np.ma.filled(heat.images[0].get_array(), np.nan)).sum() == 5 and len(heat.texts) == 10


def test_best_strengths_are_drawn_at_the_rates_of_the_panel_with_their_slope(drawn):
    table = pd.concat([grid("scheduled", 0.0), grid("decoupled", -0.5)])
    last = next(one for one in drawn(scheduled.fig17, table, HEAT) if one.get_title().startswith("vertex"))
    lines = named(last)
    assert lines["AdamW -0.50"] == (pytest.approx([1e-3, 1e-2]), pytest.approx([10**-1.5, 1e-2]))
    assert lines["AdamS +0.00"][1] == pytest.approx([1e-2, 1e-2])
    lowest = [line.get_ydata() for line in last.lines if line.get_markersize() == 3]
    assert lowest[0] == pytest.approx([1e-2, 1e-2]) and set(lowest[1]) <= {1e-2, 1e-1}  # of the grid
