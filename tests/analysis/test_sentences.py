"""Judged claims in words: names of groups, sizes, and why numbers do not decide."""

import numpy as np
import pytest

from wdlab.analysis.sentences import DOUBTS, sentence, size

NAMES = {
    "AdamW": {"regularizer": "decoupled", "regularizer.over_time": "constant"},
    "AdamC": {"regularizer": "decoupled"},
    "AdamS": {"regularizer": "scheduled"},
}
BEST = {"settings": 4, "inside": True, "chosen": 0.1}


def judged(interval=(-3.0, 1.0), **changes):
    base = {
        **{"statement": "One is lower.", "kind": "lower", "smallest_difference": 0.5, "verdict": "inconclusive"},
        **{"metric": "test_accuracy", "worst": 0.1},
        **{"a": {"regularizer": "scheduled"}, "b": {"regularizer": "decoupled"}, "a_mean": 3.0, "n": 5},
        **{"interval": list(interval), "mean_difference": sum(interval) / 2, "exploratory": False},
    }
    return base | changes


def told(names=NAMES, **changes) -> str:
    return sentence(judged(**changes), "seeds", names)


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ({"regularizer": "decoupled", "regularizer.over_time": "constant"}, "AdamW"),
        ({"regularizer": "decoupled", "regularizer.over_time": "multistep"}, "AdamC (over_time = multistep)"),
        ({"regularizer": "pnorm", "regularizer.p": 0.8}, "pnorm (p = 0.8)"),
        ({"regularizer.over_time": "delayed"}, "group (over_time = delayed)"),
        ({"regularizer": "scheduled", "regularizer.strength": [0.1, 0.2]}, "AdamS"),
    ],
)
def test_a_group_has_the_first_name_whose_values_it_has_and_then_its_own_values(where, name):
    assert f"; {name} at the best of 4 settings." in told(a=where, tuning={"a": BEST})


def test_values_that_both_groups_have_are_not_named():
    falling = {"lr_schedule": "multistep"}
    groups = {"a": {"regularizer": "scheduled"} | falling, "b": {"regularizer": "pnorm"} | falling}
    text = told(**groups, tuning={"a": BEST, "b": BEST})
    assert text.endswith("; AdamS and pnorm each at the best of 4 settings.")


def test_tunings_that_differ_are_told_one_by_one():
    tuning = {"a": {"settings": 4, "inside": False, "late": 1}, "b": {"settings": 4, "inside": False, "never": 2}}
    assert told(tuning=tuning).endswith(
        "; AdamS read between 4 settings, but at the last of them, which is not past the level, in 1 seed; "
        "AdamC read between 4 settings, but never at the level, and counted as the best of all settings, in 2 seeds."
    )


@pytest.mark.parametrize(("never", "start"), [(2, "Measured: 1 point lower"), (5, "Not measured; by rule: 1 point")])
def test_a_number_that_only_a_rule_sets_is_not_told_as_measured(never, start):
    tuning = {"a": {"settings": 4, "inside": False, "never": never}, "b": {"settings": 4, "inside": True}}
    text = told(unit="points", interval=(-0.03, 0.01), tuning=tuning)
    assert (
        start in text
        and f"AdamS read between 4 settings, but never at the level, and counted as 10 %, in {never}" in text
    )


def test_what_is_the_same_in_all_seeds_has_no_interval():
    assert "Measured: equal in each of 5 seeds, which" in told(interval=(0.0, 0.0))
    assert "Measured: equal (95 % interval" in told(interval=(-0.1, 0.1 + 1e-17), mean_difference=1e-17)
    assert "Measured: 50 % lower in each of 5 seeds, " in told(difference="of logarithms", interval=np.log((0.5, 0.5)))


def test_a_change_of_accuracy_is_in_points():
    change = {"unit": "points", "b": 0.0, "metric": "test_accuracy_change", "kind": "equal", "a_mean": 0.002}
    assert "Measured: 0.2 points (95 % interval 0.1 points to 0.3 points;" in told(**change, interval=(0.001, 0.003))


def test_the_rates_over_which_a_slope_is_fitted_are_told():
    grid = {"settings": 8, "inside": True, "grid": True, "over": "lr 0.001, 0.003"}
    assert told(b=0.0, tuning={"a": grid}).endswith("; AdamS on a grid of 8 settings with lr 0.001, 0.003.")


@pytest.mark.parametrize(
    ("doubt", "reason"),
    [
        ({"beyond": "a"}, "AdamS could not be read at the level in every seed"),
        ({"ended": "b"}, "no setting of AdamC has only runs that ended well"),
        (
            {"beyond": "b", "lost": 2},
            "AdamC could not be read at the level in every seed and neither group has a value",
        ),
    ],
)
def test_a_doubt_is_the_reason_why_numbers_do_not_decide(doubt, reason):
    assert set(doubt) <= set(DOUBTS)
    text = told(doubts=doubt)
    assert f"which does not decide it, since {reason}" in text and "would count" not in text


@pytest.mark.parametrize(
    ("changes", "meaning"),
    [
        ({}, "which does not decide it (a difference of 0.5 would count)"),
        ({"kind": "equal"}, "which does not decide it (up to 0.5 would count as equal)"),
        ({"kind": "not_worse", "better": "higher"}, "which does not decide whether it is lower by more than 0.5"),
        ({"kind": "not_worse", "better": "lower"}, "which does not decide whether it is higher by more than 0.5"),
        ({"kind": "not_worse", "better": "lower", "verdict": "reproduced"}, "so it is not higher by more than 0.5"),
        ({"kind": "not_worse", "better": "lower", "verdict": "contradicted"}, "so it is higher by more than 0.5"),
    ],
)
def test_the_meaning_depends_on_the_kind_of_claim(changes, meaning):
    assert meaning in told(**changes)


@pytest.mark.parametrize(
    ("better", "verdict", "meaning"),
    [
        ("lower", "reproduced", "so it is at most 15 %"),
        ("lower", "contradicted", "so it is not at most 15 %"),
        ("higher", "inconclusive", "which does not decide whether it is at least 5 %"),
    ],
)
def test_a_value_that_is_compared_with_a_number_is_at_most_or_at_least_what_is_tolerated(better, verdict, meaning):
    change = {"kind": "not_worse", "better": better, "b": 0.1, "smallest_difference": 0.05, "unit": "points"}
    assert meaning in told(**change, verdict=verdict, interval=(-0.03, -0.01), a_mean=0.08)


@pytest.mark.parametrize(
    ("unit", "interval", "words"),
    [
        ({}, (1.0, 3.0), "2 higher (95 % interval 1 to 3 higher;"),
        ({"unit": "points"}, (0.01, 0.03), "2 points higher (95 % interval 1 to 3 points higher;"),
        ({"unit": "points"}, (-0.03, 0.01), "1 point lower (95 % interval 3 points lower to 1 point higher;"),
        (
            {"unit": "% of the grid"},
            (-0.3, 0.1),
            "10 % of the grid less, 20 against 30 % (95 % interval 30 % of the grid less to 10 % of",
        ),
        ({"difference": "of logarithms"}, np.log((3, 12)), "6 times as high (95 % interval 3 to 12 times as high;"),
        ({"difference": "of logarithms"}, np.log((1.5, 6)), "3 times as high (95 % interval 50 % higher to 6 times as"),
        ({"difference": "of logarithms"}, np.log((0.25, 1)), "50 % lower (95 % interval 75 % lower to equal;"),
    ],
)
def test_units_are_told_once_and_large_ratios_as_factors(unit, interval, words):
    assert f"Measured: {words}" in told(**unit, interval=interval, a_mean=0.2, b_mean=0.3)


def test_the_size_of_a_difference_is_rounded():
    logarithms = {"difference": "of logarithms"}
    assert size(logarithms, -0.22, 2) == "20 %" and size(logarithms, 0.693, 2) == "a factor of 2"
    assert size(logarithms, np.log(1360.4)) == "a factor of 1,360" and size({"unit": "points"}, 0.01) == "1 point"
    assert size({"unit": "% of the grid"}, -0.05) == "5 % of the grid" and size({}, 123.4, 2) == "123"
