"""Rank correlations against SciPy, closed forms, and claims about them."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from wdlab.analysis import claims, correlation
from wdlab.errors import ConfigError


def test_kendall_is_scipys_with_and_without_ties():
    random = np.random.default_rng(0)
    for ties in (1000, 4):
        x, y = random.integers(ties, size=(2, 30)).astype(float)
        assert correlation.kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)


def test_a_resample_counts_a_run_as_often_as_it_was_drawn():
    random = np.random.default_rng(1)
    x, y, z = random.normal(size=(3, 12))
    drawn = random.integers(12, size=12)
    counts = np.bincount(drawn, minlength=12)[None].astype(float)
    (found,) = correlation.kendall(x, y, counts=counts)
    assert found == pytest.approx(stats.kendalltau(x[drawn], y[drawn]).statistic)
    (partial,) = correlation.kendall(x, y, z, counts=counts)
    assert partial == pytest.approx(correlation.kendall(x[drawn], y[drawn], z[drawn]))


def test_known_correlations():
    x = np.arange(5.0)
    assert correlation.kendall(x, x**3) == 1 and correlation.kendall(x, -x) == -1
    assert correlation.kendall(x, np.array([0.0, 1, 2, 4, 3])) == pytest.approx(0.8)  # one of ten pairs is reversed
    assert np.isnan(correlation.kendall(x, np.ones(5)))
    assert np.isnan(correlation.kendall(x, np.array([0.0, 1, 2, np.nan, 3])))


def test_partial_kendall_has_its_closed_form_and_no_value_where_nothing_is_left():
    random = np.random.default_rng(2)
    x, y, z = random.normal(size=(3, 20))
    xy, xz, yz = (stats.kendalltau(*pair).statistic for pair in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert correlation.kendall(x, y, z) == pytest.approx(expected)
    assert np.isnan(correlation.kendall(x, y, np.exp(x)))  # x has the order of what is held fixed
    assert np.isnan(correlation.kendall(x, -x, x))


def test_two_columns_that_follow_a_third_are_correlated_but_not_at_a_fixed_third():
    random = np.random.default_rng(3)
    z = random.normal(size=400)
    x, y = z + random.normal(size=(2, 400)) / 2
    assert correlation.kendall(x, y) > 0.5
    assert abs(correlation.kendall(x, y, z)) < 0.25 * correlation.kendall(x, y) + 0.05


def table(seeds=5, noise=0.0):
    """Two metrics over six settings: ``good`` ranks the gap, ``bad`` is the reverse of it within each noise."""
    random, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        for setting in range(6):
            gap = setting + noise * random.normal()
            at = {"run": f"{seed}-{setting}", "seed": seed, "regularizer": "l2", "regularizer.strength": setting % 3}
            at |= {"dataset.label_noise": setting // 3, "step": 10, "gap": gap, "good": setting**2}
            rows.append(at | {"bad": 10 * (setting // 3) - setting % 3, "train/loss": random.normal()})
    return pd.DataFrame(rows)


def test_within_cells_the_correlation_is_the_mean_over_the_cells():
    rows = table(seeds=1)
    assert correlation.correlation(rows, ["bad", "gap"]) == pytest.approx((9 - 6) / 15)
    assert correlation.correlation(rows, ["bad", "gap"], within=["dataset.label_noise"]) == -1
    samples = correlation.resampled(rows, ["bad", "gap"], within=["dataset.label_noise"])
    assert correlation.interval(samples) == (-1, -1)


def test_a_cell_in_which_the_metric_orders_runs_as_what_is_held_fixed_leaves_a_value():
    random = np.random.default_rng(5)
    rows = pd.DataFrame(random.normal(size=(20, 3)), columns=["x", "y", "z"]).assign(cell=[0] * 5 + [1] * 15)
    rows.loc[:4, "x"] = rows.loc[:4, "z"]
    assert np.isnan(correlation.correlation(rows[:5], ["x", "y"], given="z"))
    assert abs(correlation.correlation(rows, ["x", "y"], given="z", within=["cell"])) < 1


def test_settings_are_drawn_with_all_their_seeds():
    rows = table(seeds=4, noise=1.0)
    rule = {"between": ["bad", "gap"], "within": ["dataset.label_noise"]}
    alike = pd.concat([rows[rows["seed"] == 0].assign(seed=seed) for seed in range(4)])  # no other evidence
    one, several = (correlation.resampled_settings(part, rule) for part in (rows[rows["seed"] == 0], alike))
    assert several == pytest.approx(one, nan_ok=True)
    shuffled = rows.sample(frac=1, random_state=0)
    mean = np.mean(list(correlation.of_seeds(shuffled, rule).values()))
    low, high = correlation.interval(correlation.resampled_settings(shuffled, rule))
    assert low <= mean <= high
    with pytest.raises(ValueError, match="same settings"):
        correlation.resampled_settings(rows[1:], rule)


def test_either_way_turns_all_seeds_alike():
    rows = table(seeds=5, noise=3.0)
    rule = {"between": ["bad", "gap"], "within": ["dataset.label_noise"]}
    plain = correlation.of_seeds(rows, rule)
    turned = correlation.of_seeds(rows, rule | {"either_way": True})
    assert min(plain.values()) < 0 < max(plain.values()) and sum(plain.values()) < 0
    assert turned == {seed: -value for seed, value in plain.items()}
    again = correlation.of_seeds(rows.assign(bad=-rows["bad"]), rule | {"either_way": True})
    assert again == turned


def test_the_bootstrap_covers_the_true_tau():
    """For two normal variables with correlation r it is 2 / pi asin(r)."""
    random, r, covered = np.random.default_rng(4), 0.6, 0
    for seed in range(100):
        x, e = random.normal(size=(2, 40))
        rows = pd.DataFrame({"x": x, "y": r * x + np.sqrt(1 - r**2) * e})
        low, high = correlation.interval(correlation.resampled(rows, ["x", "y"], seed=seed))
        covered += low <= 2 / np.pi * np.arcsin(r) <= high
    assert 85 <= covered <= 100


def test_resamples_of_two_metrics_are_paired():
    rows = table(seeds=3, noise=1.0).assign(same=lambda t: 3 * t["good"] + 1)
    first, second = (correlation.resampled(rows, [metric, "gap"]) for metric in ("good", "same"))
    assert np.array_equal(first, second, equal_nan=True) and first.std() > 0.01


CLAIM = {
    "id": "ranks",
    "statement": "good ranks the gap better than bad does",
    "panels": ["all"],
    "metric": "gap",
    "statistic": {"name": "value_at", "step": "last"},
    "a": {"regularizer": "l2"},
    "b": {"regularizer": "l2"},
    "choose_a": {"rank_correlation": {"between": ["good", "gap"]}},
    "choose_b": {"rank_correlation": {"between": ["bad", "gap"], "within": ["dataset.label_noise"]}},
    "kind": "higher",
    "smallest_difference": 0.1,
    "reason": "of a tau",
    "worst": -1.0,
}


def test_a_claim_compares_the_correlations_of_two_metrics_by_seed():
    judged = claims.judge(CLAIM, table())
    assert (judged["verdict"], judged["n"], judged["a_mean"], judged["b_mean"]) == ("reproduced", 5, 1.0, -1.0)
    assert judged["tuning"]["a"] == {"settings": 6, "inside": True, "grid": True}
    assert claims.judge(CLAIM | {"choose_b": CLAIM["choose_a"]}, table())["mean_difference"] == 0
    given = {"rank_correlation": {"between": ["good", "gap"], "given": "train/loss"}}
    assert claims.judge(CLAIM | {"choose_a": given, "b": 0.0, "choose_b": given}, table())["a_mean"] > 0.9


def test_a_seed_of_which_a_run_diverged_counts_as_the_worst_value():
    rows = table()
    rows.loc[3, "gap"] = np.nan
    judged = claims.judge(CLAIM | {"b": 0.0}, rows)
    assert judged["differences"] == [-1.0, 1.0, 1.0, 1.0, 1.0] and judged["verdict"] == "inconclusive"


@pytest.mark.parametrize("inner", [{"between": ["x"]}, {"given": "x"}, {"between": ["x", "y"], "at": 1}, "x"])
def test_another_rule_is_refused(inner):
    with pytest.raises(ConfigError, match="rank_correlation"):
        claims.check(CLAIM | {"choose_a": {"rank_correlation": inner}})


def test_a_column_that_was_not_measured_is_named():
    with pytest.raises(ConfigError, match="claim ranks: rank_correlation: norm was not measured"):
        claims.judge(CLAIM | {"choose_a": {"rank_correlation": {"between": ["norm", "gap"]}}}, table())
