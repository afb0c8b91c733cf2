"""The plots of P4 about the time of the decay and the growth of weights: which runs are drawn, and where."""

import numpy as np
import pandas as pd
import pytest

from tests.analysis.plots.conftest import named
from wdlab.analysis.plots import early, growth

SEEDS = (0, 1, 2)
PANEL = {"panel": "p", "title": "Digits", "claimed": {"early": 10, "late": 30}}
# name, epoch of the switch, strength, and the test error and the norm at the end
ARMS = [
    ("constant", None, 0.0, 0.10, 20.0),
    ("constant", None, 0.01, 0.06, 5.0),
    ("early", 10, 0.01, 0.065, 8.0),
    ("early", 20, 0.01, 0.062, 6.0),
    ("late", 10, 0.01, 0.07, 5.5),
    ("late", 30, 0.01, 0.098, 18.0),
    ("late", 30, 0.5, 0.09, 6.0),
]


def runs() -> pd.DataFrame:
    """Log lines at epochs 0, 20 and 40; seed 1 has the values of ``ARMS``, the others a little more or less."""
    return pd.DataFrame(
        {
            **{"panel": "p", "run": f"{name}{switch}{strength}-{seed}", "seed": seed, early.OVER_TIME: name},
            **{early.SWITCH: switch, early.STRENGTH: strength, "step": 5 * epoch, "epoch": float(epoch)},
            **{"test/error": error * (1 + 0.1 * (seed - 1)) if epoch == 40 else np.nan},
            **{early.NORM: norm * (1 + 0.1 * (seed - 1)), early.ANGLE: 0.1 / norm},
        }
        for name, switch, strength, error, norm in ARMS
        for seed in SEEDS
        for epoch in (0, 20, 40)
    )


def test_errors_are_drawn_against_the_switch_between_the_runs_without_one(drawn):
    errors, *_ = drawn(early.fig11, runs())
    lines = named(errors)
    assert lines["early: decay up to an epoch"] == ([0, 10, 20, 40], pytest.approx([0.10, 0.065, 0.062, 0.06]))
    assert lines["late: decay from an epoch on"] == ([0, 10, 30, 40], pytest.approx([0.06, 0.07, 0.098, 0.10]))
    assert lines["late and stronger: as much decay as always"] == (pytest.approx([31.2]), pytest.approx([0.09]))
    assert lines["half of the gain"][1] == pytest.approx([0.08, 0.08])


def test_curves_over_epochs_are_thick_at_the_switch_of_the_claims(drawn):
    _, norms, angles = drawn(early.fig11, runs())
    thick = [line for line in norms.lines if line.get_linewidth() > 1.5]
    assert [(line.get_label(), line.get_ydata()[-1]) for line in thick] == [
        (early.LOOKS["never"].label, pytest.approx(20.0)),
        (early.LOOKS["always"].label, pytest.approx(5.0)),
        (early.LOOKS["early"].label, pytest.approx(8.0)),
        (early.LOOKS["late"].label, pytest.approx(18.0)),
    ]
    assert thick[0].get_xdata().tolist() == [20, 40]  # not the line before the first update
    assert norms.get_yscale() == angles.get_yscale() == "log"


def test_a_diverged_run_leaves_a_gap_and_no_other_line(drawn):
    table = runs()
    table.loc[
        (table[early.OVER_TIME] == "early") & (table[early.SWITCH] == 20) & (table["seed"] == 1), "test/error"
    ] = np.nan
    lines = named(drawn(early.fig11, table)[0])
    assert np.isnan(lines["early: decay up to an epoch"][1][2])
    assert np.isfinite(lines["late: decay from an epoch on"][1]).all()


# noise, images, updates, strength, norm at the end
GROWTH = [
    (0.0, 1200, 100, 0.0, 10.0),
    (0.2, 1200, 100, 0.0, 15.0),
    (0.4, 1200, 100, 0.0, 20.0),
    (0.0, 1200, 100, 0.01, 4.0),
    (0.4, 1200, 100, 0.01, 8.8),
    (0.0, 300, 100, 0.0, 9.0),
    (0.4, 300, 100, 0.0, 14.0),
    (0.0, 300, 25, 0.0, 6.0),
]


def grown() -> pd.DataFrame:
    """Three log lines of each run; the last has the norm of ``GROWTH`` times a factor of the seed."""
    return pd.DataFrame(
        {
            **{"panel": "p", "run": f"{noise}-{size}-{steps}-{strength}-{seed}", "seed": seed, growth.NOISE: noise},
            **{growth.SIZE: size, growth.STEPS: steps, early.STRENGTH: strength, "step": steps * part // 2},
            early.NORM: norm * (1 + 0.1 * seed) * (1 + part) / 3,
        }
        for noise, size, steps, strength, norm in GROWTH
        for seed in SEEDS
        for part in (0, 1, 2)
    )


def test_norms_are_drawn_over_updates_by_noise_and_by_size(drawn):
    by_noise, by_size, *_ = drawn(growth.fig13, grown())
    assert {label: y[-1] for label, (_, y) in named(by_noise).items()} == {
        "0 % noise": pytest.approx(11.0),
        "20 % noise": pytest.approx(16.5),
        "40 % noise": pytest.approx(22.0),
    }
    assert {label: (x, y[-1]) for label, (x, y) in named(by_size).items()} == {
        "1,200 images": ([50, 100], pytest.approx(11.0)),
        "300 images": ([50, 100], pytest.approx(9.9)),
    }
    assert by_noise.get_ylim() == by_size.get_ylim()


def test_norms_at_the_end_are_relative_to_those_of_clean_labels_seed_by_seed(drawn):
    *_, noise, size = drawn(growth.fig13, grown())
    assert named(noise)["no decay"] == ([0, 0.2, 0.4], pytest.approx([0, 0.5, 1.0]))
    assert named(noise)["L2, s = 0.01"] == ([0, 0.4], pytest.approx([0, 1.2]))
    assert named(size)["equal updates"] == ([300, 1200], pytest.approx([-0.1, 0]))
    assert named(size)["equal epochs"] == ([300, 1200], pytest.approx([-0.4, 0]))
    assert named(size)["40 % noise, equal updates"] == ([300, 1200], pytest.approx([0.4, 1.0]))
