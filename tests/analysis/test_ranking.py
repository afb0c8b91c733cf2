"""Which methods may be the best, how surely, and what a number of trials reaches."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from wdlab.analysis import ranking

PANEL = {"panel": "p", "worst": 0.1, "search": {"choose": {"highest": "val/accuracy"}}}


def frame(values) -> pd.DataFrame:
    return pd.DataFrame(values, columns=[f"m{column}" for column in range(np.shape(values)[1])])


@pytest.mark.parametrize("count", [5, 10])
@pytest.mark.parametrize("lead", [0.0, 0.3, 1.5])
def test_the_true_best_is_among_those_that_may_be_the_best_in_95_of_100_studies(count, lead):
    """Eighteen methods whose seeds correlate and scatter differently, also when all have the same mean."""
    random, methods, studies = np.random.default_rng(0), 18, 400
    scatter = np.linspace(0.5, 2, methods)
    hits = kept = 0
    for _ in range(studies):
        seeds = random.normal(size=(count, 1))
        values = seeds + scatter * random.normal(size=(count, methods)) - lead * np.linspace(0, 3, methods)
        found = ranking.against_best(frame(values), 1)
        hits += bool(found.loc["m0", "may_be_best"])
        kept += found["may_be_best"].sum()
    assert hits / studies >= 0.95
    assert lead < 1 or count < 10 or kept / studies < methods / 2  # not just all of them


def test_an_interval_without_correction_would_miss_the_best_too_often():
    random, studies, methods = np.random.default_rng(0), 400, 18
    missed = 0
    for _ in range(studies):
        values = random.normal(size=(10, methods))
        best = values[:, values.mean(axis=0).argmax()]
        missed += stats.ttest_rel(best, values[:, 0], alternative="greater").pvalue < 0.05
    assert missed / studies > 0.15


def test_intervals_are_students_of_paired_differences_with_a_corrected_level():
    random = np.random.default_rng(1)
    values = frame(random.normal(size=(6, 4)) + np.arange(4))
    found = ranking.against_best(values, 1)
    assert list(found.index) == list(values.mean().sort_values(ascending=False).index)
    best = found.index[0]
    for method in found.index[1:]:
        differences = values[best] - values[method]
        interval = stats.t.interval(1 - 2 * 0.05 / 3, 5, differences.mean(), stats.sem(differences))
        assert (found.loc[method, "behind_low"], found.loc[method, "behind_high"]) == pytest.approx(interval)
        assert found.loc[method, "may_be_best"] == (interval[0] <= 0)
        own = stats.t.interval(0.95, 5, values[method].mean(), stats.sem(values[method]))
        assert tuple(found.loc[method, ["low", "high"]]) == pytest.approx(own)
    assert tuple(found.loc[best, ["behind", "behind_low", "behind_high"]]) == (0, 0, 0)


def test_the_lowest_loss_is_the_best_and_equal_methods_are_never_told_apart():
    values = frame(np.array([[1.0, 2.0, 1.0], [1.1, 2.1, 1.1], [1.2, 2.2, 1.2]]))
    found = ranking.against_best(values, -1)
    assert list(found.index) == ["m0", "m2", "m1"] and found["may_be_best"].tolist() == [True, True, False]
    assert found["behind"].tolist() == pytest.approx([0, 0, 1])
    assert ranking.against_best(values[["m1"]], 1)["may_be_best"].tolist() == [True]


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 6])
def test_the_expected_best_is_the_mean_over_all_subsets(budget):
    validation = np.array([0.3, math.nan, 0.9, 0.5, 0.9, math.nan])
    test = np.array([0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
    keys = np.where(np.isnan(validation), -math.inf, validation)
    picked = [test[max(subset, key=lambda i: (keys[i], -i))] for subset in itertools.combinations(range(6), budget)]
    assert ranking.expected_best(validation, test, budget) == pytest.approx(np.mean(picked))


def rows() -> pd.DataFrame:
    """Two methods with three trials of two seeds, of which one run diverged, and judged runs of three seeds."""
    table = []
    for method, trial, seed in itertools.product(("a", "b"), range(3), (100, 101)):
        value = 0.2 * trial + 0.1 * (method == "b") + 0.01 * (seed == 101)
        table.append({"method": method, "stage": "trial", "trial": trial, "seed": seed, "test/accuracy": value})
    for method, seed in itertools.product(("a", "b"), range(3)):
        value = 0.5 + 0.1 * (method == "b") + 0.01 * seed
        table.append({"method": method, "stage": "judged", "trial": 2, "seed": seed, "test/accuracy": value})
    found = pd.DataFrame(table).assign(panel="p", step=10)
    found["run"] = [f"run{number}" for number in range(len(found))]
    found["val/accuracy"] = found["test/accuracy"] / 2
    found["train/loss"] = 0.1
    lost = (found["method"] == "b") & (found["seed"].isin([1, 101])) & (found["trial"] == 2)
    found.loc[lost, ["train/loss", "test/accuracy"]] = math.nan
    return found


def test_a_run_that_diverged_has_the_worst_score():
    scores = ranking.scores(rows(), PANEL)
    assert scores["a"].tolist() == pytest.approx([0.5, 0.51, 0.52])
    assert scores["b"].tolist() == pytest.approx([0.6, 0.1, 0.62])


def test_the_score_by_budget_is_of_the_trials():
    of_a, of_b = (ranking.budget_curve(rows(), PANEL, method) for method in "ab")
    assert list(of_a.index) == [1, 2, 3]
    assert of_a.tolist() == pytest.approx([0.205, (0.405 * 2 + 0.205) / 3, 0.405])
    assert of_b.tolist() == pytest.approx([(0.105 + 0.305 + 0.1) / 3, (0.305 * 2 + 0.105) / 3, 0.305])


def test_ranks_are_averaged_over_tasks_of_methods_that_are_in_all():
    one, two = (ranking.against_best(frame(np.eye(3)[[0, 0, 0]] * k + [[0.0, 0.1, 0.2]]), 1) for k in (1, -1))
    two.loc["extra"] = two.iloc[0]
    found = ranking.ranks({"one": one, "two": two})
    assert found.loc["m0"].tolist() == [1, 4, 2.5] and found.loc["m2"].tolist() == [2, 1.5, 1.75]
    assert math.isnan(found.loc["extra", "mean"]) and found.index[0] == "m2" and found.index[-1] == "extra"
