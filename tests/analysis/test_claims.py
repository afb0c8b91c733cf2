"""Verdicts on curves whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from wdlab.analysis import claims
from wdlab.errors import ConfigError

STEPS = np.arange(0, 101, 10)


def table(curves: dict[tuple[str, int], np.ndarray]) -> pd.DataFrame:
    """Runs of metric ``m`` by (method, seed)."""
    return pd.concat(
        pd.DataFrame({"run": f"{method}-{seed}", "method": method, "seed": seed, "step": STEPS, "m": values})
        for (method, seed), values in curves.items()
    )


def claim(**changes):
    base = {
        **{"id": "c", "statement": "", "metric": "m", "statistic": {"name": "value_at", "step": "last"}},
        **{"a": {"method": "a"}, "b": {"method": "b"}, "direction": "lower", "smallest_difference": 0.1, "reason": ""},
    }
    return base | changes


def ending(a: list[float], b: list[float]) -> pd.DataFrame:
    curves = {("a", s): np.full(len(STEPS), v) for s, v in enumerate(a)}
    return table(curves | {("b", s): np.full(len(STEPS), v) for s, v in enumerate(b)})


@pytest.mark.parametrize(
    ("direction", "a", "verdict"),
    [
        ("lower", [0.5, 0.6, 0.4], "reproduced"),
        ("lower", [1.2, 1.3, 1.1], "contradicted"),
        ("lower", [0.95, 0.97, 0.99], "contradicted"),  # lower, but never by what counts
        ("lower", [0.5, 1.2, 1.0], "inconclusive"),
        ("higher", [1.5, 1.6, 1.4], "reproduced"),
        ("higher", [0.5, 0.6, 0.4], "contradicted"),
        ("equal", [1.05, 0.95, 1.0], "reproduced"),
        ("equal", [1.5, 1.6, 1.4], "contradicted"),
        ("equal", [1.5, 1.0, 1.0], "inconclusive"),
    ],
)
def test_verdicts(direction, a, verdict):
    judged = claims.judge(claim(direction=direction), ending(a, [1.0, 1.0, 1.0]))
    assert judged["verdict"] == verdict and judged["n"] == 3 and judged["exploratory"]
    assert judged["mean_difference"] == pytest.approx(np.mean(a) - 1)
    assert judged["interval"][0] <= judged["mean_difference"] <= judged["interval"][1]


@pytest.mark.parametrize(
    ("a", "note"),
    [
        ([0.95, 0.97, 0.99], "as stated, but by less than what counts"),
        ([0.97, 1.0, 1.02], "no difference that counts, either way"),
        ([1.2, 1.3, 1.1], None),
    ],
)
def test_a_contradicted_claim_says_if_the_difference_is_not_the_other_way_round(a, note):
    judged = claims.judge(claim(), ending(a, [1.0, 1.0, 1.0]))
    assert judged["verdict"] == "contradicted" and judged.get("note") == note
    mirrored = claims.judge(claim(direction="higher"), ending([1.0, 1.0, 1.0], a))
    assert mirrored["verdict"] == "contradicted" and mirrored.get("note") == note


def test_a_mean_is_over_all_seeds_or_none():
    rows = ending([1.0, 3.0], [])
    rows.loc[(rows["seed"] == 1) & (rows["step"] >= 50), "m"] = np.nan
    found = claims.summarize_over_seeds(rows, "step", ["m"])["m"]
    assert list(found.index) == [0, 10, 20, 30, 40]
    assert found.loc[40].tolist() == [2.0, 1.0, 3.0]
    assert list(claims.summarize_over_seeds(rows[rows["step"] < 50], "step", ["m"])["m"]["mean"]) == [2.0] * 5


def test_pairs_share_a_seed():
    rows = ending([0.0, 10.0, 20.0], [1.0, 11.0, 21.0])
    judged = claims.judge(claim(), rows[~((rows["method"] == "b") & (rows["seed"] == 2))])
    assert judged["n"] == 2 and judged["interval"] == [-1.0, -1.0] and judged["verdict"] == "reproduced"


def test_one_seed_proves_nothing():
    judged = claims.judge(claim(), ending([0.0], [1.0]))
    assert judged["verdict"] == "inconclusive" and judged["interval"] is None and "two seeds" in judged["note"]


def test_a_group_may_be_compared_with_a_number():
    judged = claims.judge(claim(b=1.0, direction="equal"), ending([1.0, 1.0], []))
    assert judged["verdict"] == "reproduced" and judged["b_mean"] == 1.0


def test_reaching_levels_is_interpolated_between_log_points_and_averaged():
    rows = table({("a", 0): 1 - STEPS / 50, ("b", 0): 1 - STEPS / 400})
    judged = claims.judge(claim(statistic={"name": "share_of_run_to_reach", "where_b_is_at": [0.5, 1.0]}), rows)
    assert judged["a_mean"] == pytest.approx((0.0625 + 0.125) / 2) and judged["b_mean"] == pytest.approx(0.75)


def test_a_level_that_is_never_reached_counts_as_the_whole_run_and_is_noted():
    rows = table({("a", s): 1 + STEPS / 50 for s in (0, 1)} | {("b", s): 0.5 - STEPS / 400 for s in (0, 1)})
    judged = claims.judge(claim(statistic={"name": "share_of_run_to_reach", "where_b_is_at": [1.0]}), rows)
    assert judged["a_mean"] == 1.0 and judged["verdict"] == "contradicted" and "never reached" in judged["note"]


def test_a_run_that_diverged_makes_a_claim_inconclusive():
    rows = ending([0.0, 0.0], [1.0, 1.0])
    rows = rows[~((rows["run"] == "a-1") & (rows["step"] > 50))]  # it ended at step 50
    rows.loc[(rows["run"] == "a-1") & (rows["step"] == 50), "m"] = float("nan")
    for statistic in (
        {"name": "value_at", "step": "last"},
        {"name": "value_at", "step": 80},
        {"name": "share_of_run_to_reach", "where_b_is_at": [0.5]},
        {"name": "worst_deviation", "reference": {80: 1.0}, "relative": True},
    ):
        judged = claims.judge(claim(statistic=statistic, a={"method": "b"}, b={"method": "a"}), rows)
        assert judged["verdict"] == "inconclusive" and "diverged" in judged["note"]


def test_deviation_from_reference_values():
    rows = table({("a", s): 1 + STEPS / 100 for s in (0, 1)})
    options = {"name": "worst_deviation", "reference": {0: 1.0, 50: 1.25}}
    assert claims.judge(claim(statistic={**options, "relative": True}, b=0.0), rows)["a_mean"] == pytest.approx(0.2)
    assert claims.judge(claim(statistic={**options, "relative": False}, b=0.0), rows)["a_mean"] == pytest.approx(0.25)


def test_a_value_at_a_step():
    rows = table({("a", s): STEPS * 1.0 for s in (0, 1)})
    judged = claims.judge(claim(statistic={"name": "value_at", "step": 30}, b=0.0), rows)
    assert judged["a_mean"] == 30.0


@pytest.mark.parametrize("change", [{"direction": "sideways"}, {"statistic": {"name": "luck"}}])
def test_an_unknown_word_in_a_claim_is_refused(change):
    with pytest.raises(ConfigError, match=r"claim c: .* is unknown"):
        claims.judge(claim(**change), ending([0.0, 0.0], [1.0, 1.0]))


def test_a_step_that_is_not_logged_and_a_column_that_does_not_vary_are_refused():
    rows = ending([0.0, 0.0], [1.0, 1.0])
    with pytest.raises(ConfigError, match="names step 33, which is not logged"):
        claims.judge(claim(statistic={"name": "value_at", "step": 33}), rows)
    with pytest.raises(ConfigError, match=r"selects optimizer\.lr=1, which does not vary"):
        claims.judge(claim(a={"optimizer.lr": 1}), rows)


def test_a_group_with_two_runs_of_one_seed_is_refused():
    rows = pd.concat([ending([0.0], [1.0]), ending([0.0], []).assign(run="another")])
    with pytest.raises(ConfigError, match="claim c: 2 runs of seed 0 in a group"):
        claims.judge(claim(), rows)


def tuned() -> pd.DataFrame:
    """Two methods at three strengths, two seeds; validation accuracy, test accuracy and active units at the end."""
    ends = {  # strength: accuracy on both splits, active units
        "a": {1: (0.90, 1.0), 2: (0.895, 0.4), 3: (0.80, 0.1)},
        "b": {1: (0.90, 1.0), 2: (0.88, 1.0), 3: (0.70, 1.0)},
    }
    rows = [
        {
            "run": f"{m}{s}-{seed}",
            "method": m,
            "strength": s,
            "seed": seed,
            "step": step,
            "val": v,
            "test": v,
            "units": u,
        }
        for m, strengths in ends.items()
        for s, (v, u) in strengths.items()
        for seed in (0, 1)
        for step in (0, 10)
    ]
    return pd.DataFrame(rows)


def test_a_tuned_group_is_judged_by_the_run_that_is_best_on_validation():
    judged = claims.judge(claim(metric="units", choose={"highest": "val"}), tuned())
    assert judged["a_mean"] == judged["b_mean"] == 1.0
    assert judged["chosen"] == [["a1-0", "a1-1"], ["b1-0", "b1-1"]]


def test_the_sparsest_near_the_best_of_both_groups():
    choose = {"lowest": "units", "near_best": {"highest": "val", "within": 0.01}}
    judged = claims.judge(claim(metric="units", choose=choose), tuned())
    assert judged["a_mean"] == 0.4 and judged["b_mean"] == 1.0 and judged["verdict"] == "reproduced"
    worse = tuned()
    worse.loc[worse["method"] == "a", "val"] -= 0.1
    judged = claims.judge(claim(metric="units", choose=choose), worse)
    assert judged["verdict"] == "inconclusive" and "of seed 0 no run of a is near the best val" in judged["note"]


def test_of_equals_the_one_nearer_to_the_best_is_chosen():
    choose = {"lowest": "units", "near_best": {"highest": "val", "within": 0.03}}
    rows = tuned().iloc[::-1]  # the worse one comes first
    assert claims.judge(claim(metric="units", choose=choose), rows)["chosen"][1] == ["b1-0", "b1-1"]


def test_where_no_run_has_enough_the_note_says_so():
    choose = {"highest": "val", "a_at_least": {"strength": 4}}
    judged = claims.judge(claim(metric="test", choose=choose), tuned())
    assert judged["verdict"] == "inconclusive" and "diverged" not in judged["note"]
    assert judged["note"].startswith("of seed 0 no run of a has strength >= 4; of seed 1 no run")


def test_only_runs_with_enough_of_something():
    choose = {"highest": "val", "a_at_least": {"strength": 3}}
    judged = claims.judge(claim(metric="test", choose=choose, direction="higher", smallest_difference=-0.05), tuned())
    assert judged["chosen"] == [["a3-0", "a3-1"], ["b1-0", "b1-1"]] and judged["verdict"] == "contradicted"


def test_a_filter_may_name_several_values():
    rows = claims.select(tuned(), {"strength": [1, 3], "method": "b"})
    assert set(rows["run"]) == {"b1-0", "b1-1", "b3-0", "b3-1"}


def test_largest_after_a_share_of_the_run():
    rows = table({("a", s): np.array([9, 9, 9, 9, 9, 1, 2, 3, 2, 1, 0.0]) for s in (0, 1)})
    judged = claims.judge(claim(statistic={"name": "largest_after", "share": 0.5}, b=0.0), rows)
    assert judged["a_mean"] == 3.0
