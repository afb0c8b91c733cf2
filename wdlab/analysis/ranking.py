"""Methods compared at the same tuning budget: which may be the best, and what a number of trials reaches.

Called by the plots and the page of the study of methods. The best is picked by its mean, so an interval of one of the
other methods against it has to allow for the pick; the rule is in ``docs/verdicts.md``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from wdlab.analysis import selection, verdicts


def metric_of(panel: Mapping[str, Any]) -> tuple[str, int]:
    """Return the column that judges the methods of a panel, and 1 if the highest value is the best, or -1.

    It is the column by which trials are chosen, on the test examples.

    Args:
        panel: the declaration of a panel with a search.
    """
    ((order, column),) = panel["search"]["choose"].items()
    return column.replace("val/", "test/"), 1 if order == "highest" else -1


def scores(rows: pd.DataFrame, panel: Mapping[str, Any]) -> pd.DataFrame:
    """Return the score of each judged run of a panel, indexed by seed, with a column for each method.

    Args:
        rows: the table of a study.
        panel: the declaration of the panel. A run that diverged has the score ``worst``.
    """
    judged = selection.judged(selection.last_lines(rows[rows["panel"] == panel["panel"]]))
    column, _ = metric_of(panel)
    values = judged[column].where(~judged["run"].isin(selection.diverged(judged)), panel["worst"])
    return judged.assign(value=values).pivot(index="seed", columns="method", values="value")


def against_best(of_methods: pd.DataFrame, sign: int) -> pd.DataFrame:
    """Return how far each method is from the method with the best mean, and which may be the best.

    The intervals hold together: that of each of the k - 1 differences to the best is a Student interval of paired
    differences whose ends err with a chance of 5 % / (k - 1) each (Bonferroni). A method whose interval contains zero
    may be the best. Hence the method that is truly the best is among these in at least 95 % of all studies: to be left
    out, one of k - 1 differences that are at most zero has to have an interval above zero.

    Args:
        of_methods: the scores, indexed by seed, with a column for each method; none is missing.
        sign: 1 if the highest score is the best, -1 if the lowest is.

    Returns:
        A table indexed by method, the best mean first, of methods with equal means in the order of their names. The
        columns are ``mean``; ``low`` and ``high``, the 95 % Student interval of the mean; ``behind``, the mean
        difference to the best, and ``behind_low`` and ``behind_high``, its simultaneous interval (>= 0 is worse);
        and ``may_be_best``.
    """
    ordered = of_methods[sorted(of_methods)]
    means = ordered.mean()
    ordered = ordered[(-sign * means).sort_values(kind="stable").index]
    count, methods = ordered.shape
    low, high = verdicts.student_interval(ordered.to_numpy().T)
    behind = sign * ordered.rsub(ordered.iloc[:, 0], axis=0)
    quantile = stats.t.ppf(1 - (1 - verdicts.CONFIDENCE) / max(methods - 1, 1), count - 1)
    margin = quantile * behind.std(ddof=1) / math.sqrt(count)
    return pd.DataFrame(
        {
            "mean": ordered.mean(),
            "low": low,
            "high": high,
            "behind": behind.mean(),
            "behind_low": behind.mean() - margin,
            "behind_high": behind.mean() + margin,
            "may_be_best": behind.mean() - margin <= 0,
        }
    )


def expected_best(validation: Sequence[float], test: Sequence[float], budget: int) -> float:
    """Return the test score to expect of the trial that is best on validation, among a number of random trials.

    This is exact: the mean over all subsets of that many trials. The trial on place r of n, from 0, is the best of
    C(n - 1 - r, k - 1) of the C(n, k) subsets of k trials.

    Args:
        validation: the score of each trial on validation, the highest is the best; NaN, the worst, if it diverged. The
            first of equals is chosen.
        test: the score of each trial on test.
        budget: the number of trials, from 1 to that of all trials.
    """
    keys = np.where(np.isfinite(validation), validation, -np.inf)
    order = np.argsort(-keys, kind="stable")
    count = len(order)
    ways = [math.comb(count - 1 - place, budget - 1) for place in range(count)]
    return float(np.dot(ways, np.asarray(test, dtype=float)[order]) / math.comb(count, budget))


def budget_curve(rows: pd.DataFrame, panel: Mapping[str, Any], method: str) -> pd.Series:
    """Return the expected test score of a method's trials by budget: 1, 2, 4, ... and all trials.

    A score is the mean over the seeds of the trials; a trial of which a run diverged has the score ``worst`` of the
    panel.
    """
    column, sign = metric_of(panel)
    is_trial = (rows["panel"] == panel["panel"]) & (rows["method"] == method) & (rows["stage"] == "trial")
    trials = selection.last_lines(rows[is_trial])
    lost = trials["run"].isin(selection.diverged(trials))
    ends = trials.assign(
        validation=sign * trials[column.replace("test/", "val/")].mask(lost), test=trials[column].mask(lost)
    )
    of_trials = ends.groupby("trial")[["validation", "test"]].agg(lambda values: values.mean(skipna=False))
    count = len(of_trials)
    budgets = sorted({*(2**power for power in range(count.bit_length()) if 2**power <= count), count})
    test = of_trials["test"].fillna(panel["worst"])
    return pd.Series({budget: expected_best(of_trials["validation"], test, budget) for budget in budgets})


def ranks(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the rank of each method's mean in each task, 1 for the best, and the mean rank over the tasks.

    Args:
        tables: what :func:`against_best` returns, by task.

    Returns:
        A table indexed by method, with a column for each task (NaN where a task lacks the method), and ``mean``, NaN
        unless a method is in all tasks. The lowest mean rank comes first.
    """
    of_task = {task: table["behind"].rank(method="average") for task, table in tables.items()}
    found = pd.DataFrame(of_task)
    found["mean"] = found.mean(axis=1, skipna=False)
    return found.sort_values("mean", kind="stable")
