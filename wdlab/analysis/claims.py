"""Claims about curves, judged over seeds. Called by ``figures``; the claims stand in ``configs/figure``.

A claim compares a statistic of each run's curve between two groups of runs, or between a group and a number. Pairs
share a seed. With ``d`` the mean paired difference (a - b), its 95 % bootstrap interval, and ``m`` the smallest
difference that counts, a claim that a is lower is

- ``reproduced`` if the whole interval is at or below -m,
- ``contradicted`` if the whole interval is above -m,
- ``inconclusive`` otherwise, or with fewer than two seeds;

``higher`` mirrors this, and ``equal`` asks for the interval to be within, or outside of, [-m, m]. What a contradicted
claim lacks is a difference that counts: a note says where there is one as stated but smaller, or none either way.

A verdict on fewer than five seeds is marked as exploratory: with three the interval is nearly always their range, which
(for normal differences) holds the true mean in 75 % of cases, with five in about 86 %.

A group that was tuned holds several runs of a seed; the claim says how one of them is chosen, by its last log line:
``choose: {highest: val/accuracy}``, or ``choose: {lowest: sparsity/active_units, near_best: {highest: val/accuracy,
within: 0.01}}``, the fewest active units among those that are near the best of both groups. ``a_at_least:
{sparsity/weights: 0.9}`` beside it leaves only such runs of the first group.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from wdlab.errors import ConfigError

VERDICTS = ("reproduced", "inconclusive", "contradicted")
EXPLORATORY_BELOW = 5  # seeds
RESAMPLES = 10_000


def judge(claim: Mapping[str, Any], table: pd.DataFrame) -> dict[str, Any]:
    """The verdict on one claim.

    Args:
        claim: ``id, statement, metric, statistic, a, b, direction, smallest_difference, reason``. ``a`` and ``b`` are
            column filters (``{regularizer: l2}``, ``{optimizer.p: [0.5, 0.8]}``); ``b`` may be a number.
            ``statistic`` has a ``name`` from ``STATISTICS`` and that function's options. With ``choose`` one run of
            each group and seed is taken, see above.
        table: the rows of the runs that the claim is about, as ``analysis.load`` gives them.

    Returns:
        The claim with ``n``, ``a_mean``, ``b_mean``, ``mean_difference``, ``interval``, ``verdict``, the runs that
        were ``chosen`` and, where something needs saying, ``note``.
    """
    options = dict(claim["statistic"])
    try:
        statistic = STATISTICS[options.pop("name")]
        verdict = {"lower": _lower, "higher": _higher, "equal": _equal}[claim["direction"]]
    except KeyError as error:
        raise ConfigError(f"claim {claim['id']}: {error} is unknown; statistics: {', '.join(STATISTICS)}") from error
    b = claim["b"]
    groups = [select(table, where) for where in (claim["a"], b) if not isinstance(where, int | float)]
    notes: list[str] = []
    chosen = _chosen(groups, claim["choose"], notes) if "choose" in claim else groups
    a_curves, *rest = [_curves(rows, claim["metric"], f"claim {claim['id']}") for rows in chosen]
    b_curves = rest[0] if rest else None
    a_values, b_values = [], []
    for seed in sorted(set.intersection(*(set(rows["seed"]) for rows in groups))):
        a_curve, b_curve = a_curves.get(seed), None if b_curves is None else b_curves.get(seed)
        curves = [curve for curve in (a_curve, b_curve) if curve is not None]
        diverged = any(np.isnan(curve.iloc[-1]) for curve in curves)
        if diverged:
            notes.append(f"of seed {seed} a run diverged")
        if diverged or len(curves) < len(groups):
            a_values.append(float("nan"))
            b_values.append(float("nan"))
            continue
        a_values.append(statistic(a_curve, b_curve, notes, **options))
        b_values.append(float(b) if b_curve is None else statistic(b_curve, b_curve, notes, **options))
    differences = np.array(a_values) - np.array(b_values)
    interval = bootstrap_interval(differences)
    outcome = {
        "n": len(differences),
        "exploratory": len(differences) < EXPLORATORY_BELOW,
        "a_mean": _mean(a_values),
        "b_mean": _mean(b_values),
        "mean_difference": _mean(differences),
        "interval": interval,
        "verdict": verdict(interval, claim["smallest_difference"]) if interval else "inconclusive",
    }
    if outcome["verdict"] == "contradicted" and claim["direction"] != "equal":
        notes += _of_small_differences(interval, claim["direction"])
    if len(differences) < 2:
        notes.append("fewer than two seeds")
    if "choose" in claim:
        outcome["chosen"] = [sorted(set(rows["run"])) for rows in chosen]
    if notes:
        outcome["note"] = "; ".join(sorted(set(notes)))
    return dict(claim) | outcome


def bootstrap_interval(differences: np.ndarray) -> list[float] | None:
    """95 % percentile bootstrap interval of the mean; None for fewer than two values or any that is not finite."""
    if len(differences) < 2 or not np.isfinite(differences).all():
        return None
    result = stats.bootstrap(
        (differences,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    )
    return [float(result.confidence_interval.low), float(result.confidence_interval.high)]


# -- statistics: (curve, the other group's curve of the same seed, notes, options) -> number. A curve is a Series of the
#    metric, indexed by step, without missing values.


def value_at(curve: pd.Series, other: pd.Series | None, notes: list[str], step: int | str) -> float:
    """The metric at ``step``, a logged step or ``last``."""
    return float(curve.iloc[-1] if step == "last" else _at(curve, step))


def largest_after(curve: pd.Series, other: pd.Series | None, notes: list[str], share: float) -> float:
    """The largest value of the metric after a share of the run."""
    return float(curve[curve.index >= share * curve.index[-1]].max())


def share_of_run_to_reach(curve: pd.Series, other: pd.Series, notes: list[str], where_b_is_at: list[float]) -> float:
    """First step, as a share of the run, at which the metric is at or below a level; the mean over several levels.

    The levels are the values that group b's curve of the same seed has after the shares ``where_b_is_at`` of its run,
    so that the difference between the groups is the mean horizontal distance of their curves there. Both ways it is
    linear between log points. A level that is never reached counts as the whole run, the least that it can take: this
    favours the curve that does not reach it.
    """
    levels = np.interp(np.array(where_b_is_at) * other.index[-1], other.index, other.to_numpy())
    shares = [_first_share_at(curve, level) for level in levels]
    missed = sum(share is None for share in shares)
    if missed:
        notes.append("some levels were never reached and count as the whole run, the least it can be")
    return float(np.mean([1.0 if share is None else share for share in shares]))


def _first_share_at(curve: pd.Series, level: float) -> float | None:
    steps, values = curve.index.to_numpy(), curve.to_numpy()
    reached = np.flatnonzero(values <= level)
    if len(reached) == 0:
        return None
    k = int(reached[0])
    if k == 0:
        return float(steps[0] / steps[-1])
    part = (values[k - 1] - level) / (values[k - 1] - values[k])
    return float((steps[k - 1] + part * (steps[k] - steps[k - 1])) / steps[-1])


def worst_deviation(
    curve: pd.Series, other: pd.Series | None, notes: list[str], reference: Mapping[int, float], relative: bool
) -> float:
    """Largest absolute deviation from reference values at their steps, relative to them or not."""
    deviations = [abs(_at(curve, step) - value) / (value if relative else 1) for step, value in reference.items()]
    return float(max(deviations))


def _at(curve: pd.Series, step: int) -> float:
    if step not in curve.index:
        raise ConfigError(f"a claim asks for step {step}, which is not logged")
    return curve.loc[step]


STATISTICS: dict[str, Callable[..., float]] = {
    "value_at": value_at,
    "largest_after": largest_after,
    "share_of_run_to_reach": share_of_run_to_reach,
    "worst_deviation": worst_deviation,
}


def select(table: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """The rows whose columns have the given values, or one of several."""
    chosen = pd.Series(True, index=table.index)
    for column, value in where.items():
        if column not in table:
            raise ConfigError(f"a claim selects {column}={value}, which does not vary between these runs")
        chosen &= table[column].isin(value if isinstance(value, list) else [value])
    return table[chosen]


def last_lines(rows: pd.DataFrame) -> pd.DataFrame:
    """The last log line of each run, in each panel that it is in."""
    of_a_run = [column for column in ("panel", "run") if column in rows]
    return rows.sort_values("step", kind="stable").groupby(of_a_run, sort=False).tail(1)


def over_seeds(rows: pd.DataFrame, by: str, columns: list[str]) -> pd.DataFrame:
    """``mean``, ``min`` and ``max`` of each column over the seeds of the rows, per value of ``by``.

    Values of ``by`` for which a seed is missing are left out: the mean of the seeds that did not diverge is another
    quantity.
    """
    found = rows.groupby(by)[columns]
    complete = (found.count() == rows["seed"].nunique()).all(axis=1)
    return found.agg(["mean", "min", "max"])[complete]


def _chosen(groups: Sequence[pd.DataFrame], choose: Mapping[str, Any], notes: list[str]) -> list[pd.DataFrame]:
    """Of each group the rows of one run per seed; none of a seed that has no candidate."""
    ends = [last_lines(rows) for rows in groups]
    sign, metric = _order(choose)
    result = []
    limits = [choose.get("a_at_least", {}), {}]
    for side, rows, last, limit in zip("ab", groups, ends, limits, strict=False):
        names = []
        for seed, part in last.groupby("seed"):
            candidates = part.dropna(subset=[metric])
            why = "ended well"
            for column, least in limit.items():
                candidates, why = candidates[candidates[column] >= least], f"has {column} >= {least:g}"
            order = [sign * candidates[metric]]
            if near := choose.get("near_best"):
                near_sign, near_metric = _order(near)
                best = max((near_sign * end.loc[end["seed"] == seed, near_metric]).max() for end in ends)
                near_rank = near_sign * candidates[near_metric]
                candidates, why = candidates[near_rank >= best - near["within"]], f"is near the best {near_metric}"
                order.append(near_rank)  # between equals
            if candidates.empty:
                notes.append(f"of seed {seed} no run of {side} {why}")
            else:
                ranked = pd.concat([by[candidates.index] for by in order], axis=1).apply(tuple, axis=1)
                names.append(candidates.loc[max(ranked.index, key=ranked.get), "run"])
        result.append(rows[rows["run"].isin(names)])
    return result


def _order(choose: Mapping[str, Any]) -> tuple[int, str]:
    """1 for the ``highest`` of a metric, -1 for the ``lowest``, and the metric."""
    return (1, choose["highest"]) if "highest" in choose else (-1, choose["lowest"])


def _curves(rows: pd.DataFrame, metric: str, where: str) -> dict[int, pd.Series]:
    """Per seed, the metric by step where it was due; of a run that diverged the last value is missing."""
    curves = {}
    for seed, part in rows.groupby("seed"):
        found = part["run"].nunique()
        if found != 1:
            raise ConfigError(f"{where}: {found} runs of seed {seed} in a group, expected 1; choose says which")
        curve = part.set_index("step")[metric].sort_index()
        curves[int(seed)] = curve[curve.notna() | (curve.index == curve.index[-1])]
    return curves


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) and np.isfinite(values).all() else None


def _lower(interval: list[float], smallest: float) -> str:
    low, high = interval
    return "reproduced" if high <= -smallest else "contradicted" if low > -smallest else "inconclusive"


def _higher(interval: list[float], smallest: float) -> str:
    low, high = interval
    return _lower([-high, -low], smallest)


def _of_small_differences(interval: list[float], direction: str) -> list[str]:
    """What there is to say of a contradicted difference that is not the other way round."""
    low, high = interval
    if low <= 0 <= high:
        return ["no difference that counts, either way"]
    return ["as stated, but by less than what counts"] if (high < 0) == (direction == "lower") else []


def _equal(interval: list[float], smallest: float) -> str:
    low, high = interval
    if -smallest <= low and high <= smallest:
        return "reproduced"
    return "contradicted" if low > smallest or high < -smallest else "inconclusive"
