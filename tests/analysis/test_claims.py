"""Claims on curves whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from wdlab.analysis import claims, selection
from wdlab.analysis.sentences import sentence
from wdlab.errors import ConfigError

STEPS = np.arange(0, 101, 10)


def table(curves: dict[tuple[str, int], np.ndarray]) -> pd.DataFrame:
    """Runs of metric ``m`` by (method, seed); the loss falls from 1 to 0 in all of them."""
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "run": f"{method}-{seed}",
                    "method": method,
                    "seed": seed,
                    "step": STEPS,
                    "m": values,
                    "loss": 1 - STEPS / 100,
                }
            )
            for (method, seed), values in curves.items()
        ],
        ignore_index=True,
    )


def claim(**changes):
    base = {
        **{"id": "c", "statement": "a is lower.", "panels": ["p"], "metric": "m", "reason": "", "worst": 9.0},
        **{"statistic": {"name": "value_at", "step": "last"}, "a": {"method": "a"}, "b": {"method": "b"}},
        **{"kind": "lower", "smallest_difference": 0.1},
    }
    return base | changes


def ending(a: list[float], b: list[float]) -> pd.DataFrame:
    curves = {("a", s): np.full(len(STEPS), v) for s, v in enumerate(a)}
    return table(curves | {("b", s): np.full(len(STEPS), v) for s, v in enumerate(b)})


@pytest.mark.parametrize(
    ("kind", "a", "verdict"),
    [
        ("lower", [0.5, 0.6, 0.4], "reproduced"),
        ("lower", [1.5, 1.6, 1.4], "contradicted"),
        ("lower", [0.95, 0.96, 0.97], "no difference"),
        ("lower", [0.5, 1.2, 1.0], "inconclusive"),
        ("higher", [1.5, 1.6, 1.4], "reproduced"),
        ("equal", [1.03, 0.97, 1.0], "reproduced"),
        ("not_worse", [0.97, 0.96, 0.98], "reproduced"),
        ("not_worse", [0.5, 0.6, 0.4], "contradicted"),
    ],
)
def test_verdicts(kind, a, verdict):
    better = {"better": "higher"} if kind == "not_worse" else {}
    judged = claims.judge(claim(kind=kind, **better), ending(a, [1.0, 1.0, 1.0]))
    assert judged["verdict"] == verdict and judged["n"] == 3 and judged["exploratory"]
    assert judged["mean_difference"] == pytest.approx(np.mean(a) - 1)
    assert judged["differences"] == pytest.approx(np.array(a) - 1)
    assert judged["interval"][0] <= judged["mean_difference"] <= judged["interval"][1]


def test_of_a_loss_a_lower_one_is_not_worse():
    judged = claims.judge(claim(kind="not_worse", better="lower"), ending([0.5, 0.6, 0.4], [1.0, 1.0, 1.0]))
    assert judged["verdict"] == "reproduced"
    judged = claims.judge(claim(kind="not_worse", better="lower"), ending([1.5, 1.6, 1.4], [1.0, 1.0, 1.0]))
    assert judged["verdict"] == "contradicted"


def test_ratios_are_compared_by_logarithms():
    rows = ending([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    judged = claims.judge(claim(difference="of logarithms"), rows)
    assert judged["mean_difference"] == pytest.approx(-np.log(2)) and judged["a_mean"] == pytest.approx(2.0)
    assert "Measured: 50 % lower" in sentence(judged, "seeds")
    with pytest.raises(ConfigError, match="logarithms of a value that is not positive"):
        claims.judge(claim(difference="of logarithms"), ending([0.0, 1.0], [1.0, 1.0]))


def test_over_cases_the_worst_one_decides():
    rows = ending([0.5, 0.6], [1.0, 1.0])
    judged = claims.judge(claim(), rows, over="starting points")
    assert judged["verdict"] == "reproduced" and judged["interval"] == pytest.approx([-0.5, -0.4])
    assert judged["p_value"] is None and not judged["exploratory"]
    assert claims.judge(claim(), ending([0.5, 0.95], [1.0, 1.0]), over="cases")["verdict"] == "direction only"


def test_a_claim_that_was_changed_after_runs_were_seen_is_exploratory_at_that_scale():
    rows = ending([0.5] * 6, [1.0] * 6)
    changed = claim(changed={"cpu": "another statistic"})
    assert not claims.judge(changed, rows, "quick")["exploratory"]
    judged = claims.judge(changed, rows, "cpu")
    assert judged["exploratory"] and judged["note"] == "changed after runs were seen: another statistic"


def test_a_claim_may_have_been_changed_for_a_panel_alone():
    rows, changed = ending([0.5] * 6, [1.0] * 6), claim(changed={"noisy": "other runs"})
    assert claims.judge(changed, rows, "cpu", panel="noisy")["note"] == "changed after runs were seen: other runs"
    assert not claims.judge(changed, rows, "cpu", panel="few")["exploratory"]


def test_a_mean_is_over_all_seeds_or_none():
    rows = ending([1.0, 3.0], [])
    rows.loc[(rows["seed"] == 1) & (rows["step"] >= 50), "m"] = np.nan
    found = selection.summarize_over_seeds(rows, "step", ["m"])["m"]
    assert list(found.index) == [0, 10, 20, 30, 40]
    assert found.loc[40].tolist() == [2.0, 2.0, 1.0, 3.0]
    assert list(selection.summarize_over_seeds(rows[rows["step"] < 50], "step", ["m"])["m"]["mean"]) == [2.0] * 5


def test_pairs_share_a_seed():
    rows = ending([0.0, 10.0, 20.0, 30.0], [1.0, 11.0, 21.0, 31.0])
    judged = claims.judge(claim(), rows[~((rows["method"] == "b") & (rows["seed"] == 2))])
    assert judged["n"] == 3 and judged["interval"] == [-1.0, -1.0] and judged["verdict"] == "reproduced"
    assert judged["note"] == "1 seeds without a pair are left out"


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_decide_nothing(seeds):
    judged = claims.judge(claim(), ending([0.0] * seeds, [1.0] * seeds))
    assert judged["verdict"] == "inconclusive" and judged["exploratory"]


def test_a_group_may_be_compared_with_a_number():
    judged = claims.judge(claim(b=1.0, kind="equal"), ending([1.0, 1.0, 1.0], []))
    assert judged["verdict"] == "reproduced" and judged["b_mean"] == 1.0
    text = sentence(judged, "seeds")
    assert text == "a is lower. Measured: 1 in each of 3 seeds, so it holds within 0.1; exploratory."


ONCE_BELOW = {"name": "mean_once_both_below", "of": "loss", "level": 0.5}


def test_the_mean_ratio_from_the_line_on_at_which_both_losses_are_low():
    rows = table(
        {("a", s): np.where(STEPS < 60, 100.0, 2.0) for s in range(3)} | {("b", s): 0 * STEPS + 4.0 for s in range(3)}
    )
    rows.loc[(rows["method"] == "b") & (rows["step"] == 50), "loss"] = 0.51  # so that b is below 0.5 from step 60 on
    judged = claims.judge(claim(statistic=ONCE_BELOW, difference="of logarithms"), rows)
    assert judged["a_mean"] == pytest.approx(2.0) and judged["b_mean"] == pytest.approx(4.0)


@pytest.mark.parametrize(("missed", "difference"), [("a", 9.0 - 4.0), ("b", 0.0), ("ab", 9.0 - 4.0)])
def test_a_level_that_is_never_reached_cannot_favour_the_claim(missed, difference):
    rows = ending([2.0] * 3, [4.0] * 3)
    rows.loc[rows["method"].isin(list(missed)), "loss"] = 1.0
    judged = claims.judge(claim(statistic=ONCE_BELOW), rows)
    assert judged["mean_difference"] == pytest.approx(difference) and "never has loss <= 0.5" in judged["note"]


def test_a_statistic_of_two_runs_needs_a_group_b():
    with pytest.raises(ConfigError, match=r"claim c: b=1\.0: mean_once_both_below needs a group of runs"):
        claims.judge(claim(statistic=ONCE_BELOW, b=1.0), ending([1.0] * 3, []))


@pytest.mark.parametrize(
    "statistic",
    [
        {"name": "value_at", "step": "last"},
        {"name": "value_at", "step": 80},
        {"name": "largest_after", "share": 0.5},
        {"name": "worst_deviation", "reference": {80: 1.0}, "relative": True},
        ONCE_BELOW,
    ],
)
def test_a_run_that_diverged_counts_as_the_worst_value(statistic):
    rows = ending([0.5] * 3, [1.0] * 3)
    rows = rows[~((rows["run"] == "a-1") & (rows["step"] > 50))]  # it ended at step 50
    rows.loc[(rows["run"] == "a-1") & (rows["step"] == 50), "m"] = float("nan")
    judged = claims.judge(claim(statistic=statistic), rows)
    assert judged["differences"][1] > 7 and judged["verdict"] == "inconclusive"
    assert "1 of 3 seeds of a diverged and count as the worst value" in judged["note"]


def test_deviation_from_reference_values():
    rows = table({("a", s): 1 + STEPS / 100 for s in (0, 1, 2)})
    options = {"name": "worst_deviation", "reference": {0: 1.0, 50: 1.25}}
    assert claims.judge(claim(statistic={**options, "relative": True}, b=0.0), rows)["a_mean"] == pytest.approx(0.2)
    assert claims.judge(claim(statistic={**options, "relative": False}, b=0.0), rows)["a_mean"] == pytest.approx(0.25)


def test_the_deviation_of_the_median_curve_is_told_beside_that_of_every_seed():
    rows = table({("a", s): STEPS * 0 + v for s, v in enumerate([1.01, 0.98, 1.5])})
    statistic = {"name": "worst_deviation", "reference": {50: 1.0}, "relative": True}
    judged = claims.judge(claim(statistic=statistic, b=0.0, kind="equal", unit="points"), rows)
    assert judged["note"] == ("the median over seeds deviates by 1 point, single seeds by 1 point, 2 points, 50 points")


def test_a_value_at_a_step():
    rows = table({("a", s): STEPS * 1.0 for s in (0, 1, 2)})
    judged = claims.judge(claim(statistic={"name": "value_at", "step": 30}, b=0.0), rows)
    assert judged["a_mean"] == 30.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "sideways"}, "kind=sideways: must be one of lower, higher, not_worse, equal"),
        ({"statistic": {"name": "luck"}}, "statistic=luck: must be one of value_at, "),
        ({"difference": "squared"}, "difference=squared: must be one of None, of logarithms"),
        ({"unit": "miles"}, "unit=miles: must be one of None, points, nats"),
        ({"better": "lower"}, "better=lower: must be one of None"),
        ({"smallest_difference": 0.0}, r"smallest_difference=0\.0: must be > 0"),
        ({"choose": {"best": "val"}}, "choose={'best': 'val'}: must be highest, lowest, at, or within_best"),
        ({"choose": {"within_best": {"highest": "val"}}}, "choose={.*}: must be highest, lowest, at, or within_best"),
        ({"direction": "lower"}, "key 'direction' is unknown"),
    ],
)
def test_a_claim_that_is_not_well_formed_is_refused(change, message):
    with pytest.raises(ConfigError, match=f"claim c: {message}"):
        claims.check(claim(**change))


def test_a_claim_needs_its_worst_value():
    incomplete = claim()
    del incomplete["worst"]
    with pytest.raises(ConfigError, match="claim c: key 'worst' is missing"):
        claims.check(incomplete)


def test_a_metric_that_was_not_measured_is_refused():
    with pytest.raises(ConfigError, match="claim c: metric luck was not measured"):
        claims.judge(claim(metric="luck"), ending([1.0] * 3, [1.0] * 3))


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


def test_largest_after_a_share_of_the_run():
    rows = table({("a", s): np.array([9, 9, 9, 9, 9, 1, 2, 3, 2, 1, 0.0]) for s in (0, 1, 2)})
    judged = claims.judge(claim(statistic={"name": "largest_after", "share": 0.5}, b=0.0), rows)
    assert judged["a_mean"] == 3.0


def test_the_geometric_mean_after_a_share_of_the_run():
    rows = table({("a", s): np.array([9, 9, 9, 9, 9, 9, 9, 9, 9, 1, 4.0]) for s in (0, 1, 2)})
    judged = claims.judge(claim(statistic={"name": "mean_after", "share": 0.8}, b=0.0), rows)
    assert judged["a_mean"] == pytest.approx(2.0)  # of 1 and 4, without the line at the share itself


def test_where_both_runs_of_a_seed_diverged_a_claim_is_inconclusive():
    rows = ending([0.5] * 5, [1.0] * 5)
    rows.loc[(rows["seed"] == 1) & (rows["step"] == 100), "m"] = np.inf
    rows["m"] = rows["m"].where(rows["seed"] == 1, 1.0)
    judged = claims.judge(claim(kind="not_worse", better="higher"), rows)
    assert judged["verdict"] == "inconclusive" and "neither group has a value for 1 seeds" in judged["note"]


@pytest.mark.parametrize(
    ("changes", "a", "text"),
    [
        (
            {},
            [0.5, 0.6, 0.4],
            "Measured: 0.5 lower (95 % interval 0.252 to 0.748 lower; 3 seeds), so it holds, by at least",
        ),
        (
            {"unit": "points"},
            [1.01, 1.02, 1.03],
            "2 points higher (95 % interval 0.484 points lower to 4.48 points higher;",
        ),
        ({"unit": "nats"}, [1.1, 1.2, 1.3], "0.2 nats higher (95 % interval 0.0484 nats lower to 0.448 nats higher;"),
        (
            {"difference": "of logarithms"},
            [0.5] * 3,
            "50 % lower in each of 3 seeds, so it holds, by at least",
        ),
        ({"difference": "of logarithms"}, [0.5] * 3, "so it holds, by at least 9.5 %"),
        (
            {"unit": "points"},
            [0.99] * 3,
            "so any difference is smaller than 10 points, though the interval leaves out zero",
        ),
        (
            {"kind": "not_worse", "better": "higher"},
            [1.0] * 3,
            "Measured: equal in each of 3 seeds, so it is not lower by more",
        ),
        ({}, [1.5, 1.5, 1.6], "so it is the other way round; exploratory."),
        ({}, [0.5, 1.2, 1.0], "which does not decide it (a difference of 0.1 would count); exploratory."),
    ],
)
def test_the_sentence_tells_direction_size_interval_and_meaning(changes, a, text):
    assert text in sentence(claims.judge(claim(**changes), ending(a, [1.0, 1.0, 1.0])), "seeds")


def test_the_sentence_tells_that_a_claim_does_not_stand_after_the_correction():
    judged = claims.judge(claim(), ending([0.5, 0.6, 0.4], [1.0] * 3)) | {"holm": False}
    assert "though not after Holm's correction" in sentence(judged, "seeds")
