"""Statistics of grids of settings, on grids whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from tests.analysis.test_claims import claim
from wdlab.analysis import claims, grids
from wdlab.analysis.sentences import sentence
from wdlab.errors import ConfigError

STRENGTHS, RATES = (1e-3, 1e-2, 1e-1, 1.0, 10.0), (1e-3, 1e-2, 1e-1)


def grid(slope: float, method: str = "a", seeds: int = 3, best: float = 1e-1) -> pd.DataFrame:
    """Last rows of runs whose best strength is ``best`` at the middle rate, and rises with the rate by a slope."""
    return pd.DataFrame(
        [
            {
                "run": f"{method}-{strength}-{rate}-{seed}",
                "method": method,
                "regularizer.strength": strength,
                "lr": rate,
                "seed": seed,
                "step": 10,
                "m": np.exp((np.log10(strength / best) - slope * np.log10(rate / 1e-2)) ** 2 / 100) * (1 + seed),
            }
            for strength in STRENGTHS
            for rate in RATES
            for seed in range(seeds)
        ]
    )


@pytest.mark.parametrize("vertex", [-0.4, 0.0, 0.7])
def test_the_best_place_is_the_vertex_of_a_parabola(vertex):
    x = np.arange(-4.0, 5.0)
    assert grids.best_along(x, 3 * (x - vertex) ** 2 + 1) == pytest.approx(vertex)


def test_the_best_place_lies_between_the_values_it_is_fitted_to():
    x = np.arange(5.0)
    assert grids.best_along(x, x) == 0.0
    assert grids.best_along(x, -x) == 4.0
    assert grids.best_along(x[:2], np.array([2.0, 1.0])) == 1.0
    assert grids.best_along(x, np.array([1.0, 0.0, 0.1, 9.0, 9.0])) < 2


def test_far_values_do_not_move_the_best_place():
    x = np.arange(9.0)
    y = (x - 3) ** 2
    far = y.copy()
    far[6:] = 1e6
    assert grids.best_along(x, y) == pytest.approx(grids.best_along(x, far)) == pytest.approx(3)


@pytest.mark.parametrize("slope", [0.0, -0.5, 0.3])
def test_slopes_of_the_best_strength(slope):
    slopes = grids.slopes_of_best(grid(slope), "m", -1, "regularizer.strength", "lr")
    assert slopes == pytest.approx(dict.fromkeys(range(3), slope))


def test_runs_that_diverged_are_left_out_of_the_best_strength_and_a_rate_without_runs_gives_no_slope():
    rows = grid(-0.5)
    rows.loc[(rows["seed"] == 0) & (rows["regularizer.strength"] == 10.0), "m"] = np.nan
    rows.loc[(rows["seed"] == 1) & (rows["lr"] == 1e-1), "m"] = np.inf
    slopes = grids.slopes_of_best(rows, "m", -1, "regularizer.strength", "lr")
    assert slopes[0] == pytest.approx(-0.5) and np.isnan(slopes[1]) and slopes[2] == pytest.approx(-0.5)


def test_shares_count_the_settings_of_a_seed_that_reach_the_level():
    rows = pd.DataFrame({"seed": [0, 0, 0, 0, 1, 1, 1, 1], "m": [0.9, 0.89, 0.8, np.nan, 0.9, 0.9, 0.9, 0.1]})
    assert grids.shares_within(rows, "m", 1, 0.885) == {0: 0.5, 1: 0.75}


SLOPE = {"slope_of_best": {"lowest": "m", "over": "lr"}}


def test_a_claim_about_slopes():
    judged = claims.judge(claim(choose_a=SLOPE, kind="equal", b=-0.5), grid(-0.45))
    assert judged["verdict"] == "reproduced" and judged["a_mean"] == pytest.approx(-0.45)
    assert judged["tuning"]["a"] == {"settings": 15, "inside": True, "grid": True, "over": "lr 0.001, 0.01, 0.1"}
    assert "Measured: -0.45 (95 % interval -0.45 to -0.45; 3 seeds)" in sentence(judged, "seeds")
    assert "group (method = a) on a grid of 15 settings with lr 0.001, 0.01, 0.1" in sentence(judged, "seeds")


def test_a_slope_counts_as_at_the_edge_if_the_best_strength_of_some_rate_is():
    judged = claims.judge(claim(choose_a=SLOPE, kind="equal", b=-0.5), grid(-0.5, best=1.0))
    assert judged["tuning"]["a"]["inside"]
    judged = claims.judge(claim(choose_a=SLOPE, kind="equal", b=-2.0), grid(-2.0))
    assert not judged["tuning"]["a"]["inside"] and "with the best at the edge" in sentence(judged, "seeds")


def test_a_claim_about_shares_measures_each_group_by_its_own_best():
    wide, narrow = grid(0.0), grid(0.0, "b")
    narrow["m"] = 5 * narrow["m"]
    rule = {"share_within": {"lowest": "m", "within": 1e-6}}
    rows = pd.concat([wide.assign(m=2.0), narrow])
    judged = claims.judge(claim(choose=rule, kind="higher", smallest_difference=0.5, worst=0.0), rows)
    assert judged["a_mean"] == 1.0 and judged["b_mean"] == pytest.approx((1 + 3 / 15 + 0) / 3)  # by seed
    with pytest.raises(ConfigError, match="must be highest, lowest, at, or within_best"):
        claims.judge(claim(choose={"share_within": {"lowest": "m", "over": "lr"}}), rows)
