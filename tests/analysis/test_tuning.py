"""Groups with several settings: which one is chosen, and what is interpolated."""

import numpy as np
import pandas as pd
import pytest

from tests.analysis.test_claims import claim
from wdlab.analysis import claims, tuning
from wdlab.analysis.sentences import sentence, size
from wdlab.errors import ConfigError

STRENGTH = "regularizer.strength"


def runs(ends: dict[str, dict[float, tuple[float, float, float]]], seeds: int = 3) -> pd.DataFrame:
    """Runs by method and strength, which end with the values val, test and zeros (the same for all seeds)."""
    return pd.DataFrame(
        [
            {
                **{
                    "run": f"{method}{strength}-{seed}",
                    "method": method,
                    STRENGTH: strength,
                    "seed": seed,
                    "step": step,
                },
                **dict(zip(("val", "m", "zeros"), values, strict=True)),
            }
            for method, strengths in ends.items()
            for strength, values in strengths.items()
            for seed in range(seeds)
            for step in (0, 10)
        ]
    )


TWO = {
    "a": {1: (0.90, 0.90, 0.0), 2: (0.92, 0.91, 0.5), 3: (0.80, 0.80, 1.0)},
    "b": {1: (0.88, 0.88, 0.0), 2: (0.80, 0.80, 0.0), 3: (0.70, 0.70, 0.0)},
}


def tuned(rows: pd.DataFrame, rule: dict, method: str = "a") -> tuning.Tuned:
    groups = [part for _, part in rows.groupby("method")]
    return tuning.tuned(rows[rows["method"] == method], rule, "m", groups, "claim c")


def test_one_setting_is_chosen_for_all_seeds_by_its_mean():
    rows = runs(TWO)
    found = tuned(rows, {"highest": "val"})
    assert found.runs == {seed: f"a2-{seed}" for seed in range(3)} and found.chosen == 2.0
    assert found.settings == 3 and found.inside and found.diverged == 0
    assert tuned(rows, {"lowest": "val"}).runs == {seed: f"a3-{seed}" for seed in range(3)}
    rows.loc[rows["run"] == "a1-0", "val"] = 5.0  # so lucky that the mean is the best
    assert tuned(rows, {"highest": "val"}).chosen == 1.0 and not tuned(rows, {"highest": "val"}).inside


def test_a_setting_with_a_diverged_run_is_not_chosen():
    rows = runs(TWO)
    rows.loc[(rows["run"] == "a2-0") & (rows["step"] == 10), ["val", "m", "zeros"]] = np.nan
    assert tuned(rows, {"highest": "val"}).chosen == 1.0 and tuned(rows, {"highest": "val"}).diverged == 1
    rows.loc[(rows["seed"] == 1) & (rows["step"] == 10), ["val", "m", "zeros"]] = np.nan
    assert tuned(rows, {"highest": "val"}).runs == {}
    judged = claims.judge(claim(choose={"highest": "val"}, kind="higher", worst=0.0), rows)
    assert judged["verdict"] == "inconclusive" and "neither group has a value for 3 seeds" in judged["note"]


def test_of_several_exponents_the_inside_is_that_of_one_of_them():
    rows = pd.concat([runs({"a": TWO["a"]}).assign(p=p) for p in (0.5, 0.8)], ignore_index=True)
    rows = rows[["run", "method", "p", STRENGTH, "seed", "step", "val", "m", "zeros"]]
    rows["run"] += rows["p"].astype(str)
    found = tuning.tuned(rows, {"highest": "val"}, "m", [rows], "claim c")
    assert found.settings == 6 and found.inside and found.runs[0] == "a2-00.5"


def test_a_metric_is_interpolated_where_a_column_passes_a_level():
    found = tuned(runs(TWO), {"at": {"zeros": 0.6}})
    assert found.values == pytest.approx(dict.fromkeys(range(3), 0.91 - 0.2 * 0.11)) and found.inside
    none = tuned(runs(TWO), {"at": {"zeros": 0.6}}, "b")  # it has no zeros
    assert np.isnan(none.values[0]) and none.extremes == dict.fromkeys(range(3), (0.7, 0.88)) and not none.inside
    beyond = tuned(runs({"a": {1: (0, 0.7, 0.95), 2: (0, 0.6, 0.99)}, "b": TWO["b"]}), {"at": {"zeros": 0.9}})
    assert beyond.values[0] == 0.7 and beyond.early == [0, 1, 2] and not beyond.inside


def test_the_strongest_setting_that_is_nearly_as_good_as_the_best_of_both_groups():
    rule = {"within_best": {"highest": "val", "within": 0.06}}  # the level is 0.86
    found = tuned(runs(TWO), rule)
    assert found.values == pytest.approx(dict.fromkeys(range(3), 0.91 - 0.5 * 0.11)) and found.inside
    assert tuned(runs(TWO), {"within_best": {"highest": "val", "within": 0.5}}).late == [0, 1, 2]
    never = tuned(runs(TWO), {"within_best": {"highest": "val", "within": 0.01}}, "b")
    assert np.isnan(never.values[0]) and never.extremes[0] == (0.7, 0.88) and not never.inside


def test_of_a_loss_the_level_is_above_the_best():
    losses = {"a": {1: (0.10, 0.9, 0), 2: (0.20, 0.8, 0)}, "b": {1: (0.30, 0.9, 0), 2: (0.40, 0.8, 0)}}
    found = tuned(runs(losses), {"within_best": {"lowest": "val", "within": 0.05}})
    assert found.values[0] == pytest.approx(0.85)


def test_of_several_passages_the_last_counts():
    wavy = {"a": {1: (0.9, 1.0, 0), 2: (0.7, 2.0, 0), 3: (0.9, 3.0, 0), 4: (0.7, 4.0, 0)}, "b": TWO["b"]}
    assert tuned(runs(wavy), {"within_best": {"highest": "val", "within": 0.1}}).values[0] == pytest.approx(3.5)


def falls(strengths: dict[float, float], seeds: int = 3) -> pd.DataFrame:
    """The runs of a group whose score, the column val, has these values by strength."""
    return runs({"a": {s: (score, 1.0, 0) for s, score in strengths.items()}}, seeds)


def half_strength(rows: pd.DataFrame, to: float = 0.1) -> tuning.Tuned:
    return tuning.tuned(rows, {"lost": {"highest": "val", "to": to, "share": 0.5}}, STRENGTH, [rows], "claim c")


def test_half_of_the_score_is_lost_at_a_strength_that_is_interpolated_by_its_logarithm():
    found = half_strength(falls({0.01: 0.85, 0.1: 0.9, 1.0: 0.7, 100.0: 0.3}))  # half-way from 0.9 to 0.1 is 0.5
    assert found.values == pytest.approx(dict.fromkeys(range(3), 10.0)) and found.inside and found.settings == 4
    losses = falls({0.1: 2.0, 1.0: 1.0, 100.0: 3.0})  # half-way from 1 to 4 is 2.5
    rule = {"lost": {"lowest": "val", "to": 4.0, "share": 0.5}}
    of_loss = tuning.tuned(losses, rule, STRENGTH, [losses], "claim c")
    assert of_loss.values[0] == pytest.approx(100**0.75)


def test_half_of_the_score_is_measured_from_the_best_mean_of_the_own_group():
    rows = falls({0.1: 0.9, 1.0: 0.5, 10.0: 0.1})
    rows.loc[rows["run"] == "a0.1-0", "val"] = 0.6  # the mean is 0.8, half-way 0.45
    other = falls({0.1: 2.0})
    rule = {"lost": {"highest": "val", "to": 0.1, "share": 0.5}}
    found = tuning.tuned(rows, rule, STRENGTH, [rows, other], "claim c")
    assert found.values == pytest.approx(dict.fromkeys(range(3), 10 ** (0.05 / 0.4)))


def test_a_diverged_run_has_lost_the_whole_score():
    rows = falls({0.1: 0.9, 1.0: 0.9, 10.0: 0.3})
    rows.loc[(rows["run"] == "a10.0-1") & (rows["step"] == 10), "val"] = np.nan
    found = half_strength(rows)
    assert found.diverged == 1 and found.inside
    assert found.values == pytest.approx({0: 10 ** (2 / 3), 1: 10**0.5, 2: 10 ** (2 / 3)})


def test_a_score_that_does_not_fall_half_way_within_the_strengths_has_a_bound():
    assert half_strength(falls({0.1: 0.9, 1.0: 0.8})).values == pytest.approx(dict.fromkeys(range(3), 1.0))
    assert half_strength(falls({0.1: 0.9, 1.0: 0.8})).late == [0, 1, 2]
    rows = falls({0.1: 0.9, 1.0: 0.1})
    rows.loc[rows["run"] == "a0.1-2", "val"] = 0.2  # this seed has lost it at every strength
    found = half_strength(rows)
    assert found.early == [2] and found.values[2] == pytest.approx(0.1) and not found.inside


def test_the_decades_between_two_losses_do_not_depend_on_the_unit_of_strength():
    ends = {1e-3: (0.9, 0, 10.0), 1e-2: (0.9, 0, 8.0), 1e-1: (0.7, 0, 5.0), 1.0: (0.1, 0, 1.0)}
    norm, score = ({"lost": {"highest": column, "to": 0.0, "share": 0.1}} for column in ("zeros", "val"))
    for unit in (1, 1000):
        rows = runs({"a": {strength * unit: values for strength, values in ends.items()}})
        found = tuning.tuned(rows, {"decades": {"from": norm, "to": score}}, STRENGTH, [rows], "claim c")
        assert found.values == pytest.approx(dict.fromkeys(range(3), 0.95)) and found.inside
    found = tuning.tuned(rows, {"decades": {"from": score, "to": norm}}, STRENGTH, [rows], "claim c")
    assert found.values[0] == pytest.approx(-0.95)


@pytest.mark.parametrize(
    "rule",
    [
        {"lost": {"highest": "val", "to": 0.1}},
        {"lost": {"highest": "val", "share": 0.1, "to": 0, "within": 1}},
        {"decades": {"from": {"lost": {"highest": "val", "to": 0, "share": 0.1}}}},
        {"decades": {"from": {"at": {"val": 1}}, "to": {"at": {"val": 2}}}},
        {"decades": {key: {"lost": {"highest": "val"}} for key in ("from", "to")}},
    ],
)
def test_a_rule_about_losses_needs_all_its_keys(rule):
    with pytest.raises(ConfigError, match=r"claim c: choose=.* must be highest, .* decades"):
        tuning.check_rule(rule, "claim c")


def test_no_metric_is_interpolated_across_a_diverged_run():
    wide = {1: (0.9, 1.0, 0), 2: (0.85, 2.0, 0), 3: (0.7, 3.0, 0), 4: (0.6, 4.0, 0)}
    rows, rule = runs({"a": wide, "b": wide}), {"within_best": {"highest": "val", "within": 0.1}}
    assert tuned(rows, rule).values[0] == pytest.approx(2 + 1 / 3)
    rows.loc[(rows["run"] == "a2-0") & (rows["step"] == 10), ["val", "m"]] = np.nan
    found = tuned(rows, rule)
    assert np.isnan(found.values[0]) and found.extremes[0] == (1.0, 4.0) and found.diverged == 1
    assert found.values[1] == pytest.approx(2 + 1 / 3)
    judged = claims.judge(claim(choose=rule), rows)
    assert judged["differences"][0] > 6 and "1 runs of the settings of a diverged" in judged["note"]


def test_a_level_that_is_never_reached_cannot_favour_the_claim():
    ends = {"a": {1: (0.9, 0, 0.5), 2: (0.8, 0, 0.9)}, "b": {1: (0.85, 0, 0.2), 2: (0.7, 0, 0.4)}}
    rows, rule = runs(ends), {"within_best": {"highest": "val", "within": 0.02}}
    of_b = claims.judge(claim(metric="zeros", kind="higher", choose=rule, worst=0.0), rows)
    assert of_b["b_mean"] == pytest.approx(0.4) and of_b["a_mean"] == pytest.approx(0.58)
    assert "3 of 3 seeds of b never reach the level and count with the best value of all settings" in of_b["note"]
    assert of_b["verdict"] == "reproduced" and of_b["tuning"]["a"] == {"settings": 2, "inside": True}
    swapped = claim(metric="zeros", kind="higher", choose=rule, worst=-1.0, a={"method": "b"}, b={"method": "a"})
    of_a = claims.judge(swapped, rows)
    assert of_a["a_mean"] == -1.0 and "count with the worst value" in of_a["note"]
    assert of_a["verdict"] == "inconclusive" and "a could not be read at the level in every seed" in of_a["note"]


def test_a_bound_of_b_makes_a_claim_inconclusive():
    rows = runs({"a": {1: (0.9, 0.9, 0.8), 2: (0.8, 0.8, 0.9)}, "b": {1: (0.9, 0.9, 0.1), 2: (0.9, 0.9, 0.2)}})
    rule = {"within_best": {"highest": "val", "within": 0.05}}
    judged = claims.judge(claim(metric="zeros", kind="higher", choose=rule, worst=0.0), rows)
    assert judged["mean_difference"] > 0.6 and judged["verdict"] == "inconclusive"
    assert (
        "b could not be read at the level in every seed" in judged["note"] and judged["tuning"]["b"]["inside"] is False
    )
    assert judged["doubts"] == {"beyond": "b"}


def test_the_sentence_names_the_groups_and_tells_the_grid():
    judged = claims.judge(claim(choose={"highest": "val"}, kind="higher"), runs(TWO))
    assert judged["tuning"] == {
        "a": {"settings": 3, "inside": True, "chosen": 2.0},
        "b": {"settings": 3, "inside": False, "chosen": 1.0},
    }
    judged |= {"a": {"regularizer": "pnorm", "regularizer.p": 0.8}, "b": {"regularizer": "decoupled"}}
    text = sentence(judged, "seeds")
    assert "; pnorm (p = 0.8) at the best of 3 settings; decoupled at the best of 3 settings, at the edge of" in text
    judged = claims.judge(claim(choose={"at": {"zeros": 0.6}}), runs(TWO))
    found = sentence(judged, "seeds")
    assert "group (method = a) read between 3 settings; group (method = b) read between 3 settings, but never" in found


def test_two_runs_of_a_seed_and_strength_are_no_curve():
    rows = runs(TWO)
    twice = pd.concat([rows, rows.assign(run=rows["run"] + "x")])
    with pytest.raises(ConfigError, match="several runs of a seed at one regularizer"):
        tuned(twice, {"at": {"zeros": 0.5}})
    with pytest.raises(ConfigError, match="claim c: the runs do not differ in regularizer"):
        tuned(rows, {"highest": "val", "along": "regularizer.zeros"})


def test_a_large_ratio_is_told_as_a_factor():
    of_logarithms = {"difference": "of logarithms"}
    told = [size(of_logarithms, np.log(ratio)) for ratio in (1360, 2, 0.05)]
    assert told == ["a factor of 1,360", "a factor of 2", "95 %"]


def test_half_of_a_gain_is_the_mean_of_two_settings():
    two = {"b": {0: (0.0, 0.10, 0), 1: (0.0, 0.04, 0)}}
    rows = runs({"a": {1: (0.0, 0.08, 0)}, **two}, seeds=5)
    rows.loc[rows["seed"] == 4, "m"] += 0.01
    half = claim(choose_b={"mean_of_settings": 2}, kind="higher", smallest_difference=0.005, worst=0.0)
    judged = claims.judge(half, rows)
    assert judged["b_mean"] == pytest.approx(0.072) and judged["differences"] == pytest.approx([0.01] * 5)
    assert judged["verdict"] == "reproduced" and judged["tuning"]["b"]["mean"]
    assert "group (method = b) as the mean of 2 settings" in sentence(judged, "seeds")
    rows.loc[rows["run"].str.startswith("b1-") & (rows["step"] == 10), "m"] = np.nan
    judged = claims.judge(half, rows)
    assert judged["verdict"] == "inconclusive" and judged["doubts"] == {"ended": "b"}


def test_each_seed_of_a_mean_must_have_every_setting():
    rows = runs(TWO)
    for count, part in ((2, rows), (4, rows), (3, rows[rows["run"] != "a2-1"])):
        with pytest.raises(ConfigError, match=f"mean_of_settings={count}: each seed must have one run in each"):
            tuned(part, {"mean_of_settings": count})
