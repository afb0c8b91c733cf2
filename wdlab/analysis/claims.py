"""Claims about curves, judged over seeds. Called by ``figures``; the claims stand in ``configs/figure``.

A claim compares a statistic of each run's curve between two groups of runs, or between a group and a number. Pairs
share a seed. With ``d`` the mean paired difference (a - b), its 95 % bootstrap interval, and ``m`` the smallest
difference that counts, a claim that a is lower is

- ``reproduced`` if the whole interval is at or below -m,
- ``contradicted`` if the whole interval is above -m,
- ``inconclusive`` otherwise, or with fewer than two seeds;

``higher`` mirrors this, and ``equal`` asks for the interval to be within, or outside of, [-m, m].
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from wdlab.errors import ConfigError

EXPLORATORY_BELOW = 5  # seeds
RESAMPLES = 10_000


def judge(claim: Mapping[str, Any], table: pd.DataFrame) -> dict[str, Any]:
    """The verdict on one claim.

    Args:
        claim: ``id, statement, metric, statistic, a, b, direction, smallest_difference, reason``. ``a`` and ``b`` are
            column filters (``{regularizer: l2}``); ``b`` may be a number. ``statistic`` has a ``name`` from
            ``STATISTICS`` and that function's options.
        table: the rows of the runs that the claim is about, as ``analysis.load`` gives them.

    Returns:
        The claim with ``n``, ``a_mean``, ``b_mean``, ``mean_difference``, ``interval``, ``verdict`` and, where
        something needs saying, ``note``.
    """
    options = dict(claim["statistic"])
    try:
        statistic = STATISTICS[options.pop("name")]
        verdict = {"lower": _lower, "higher": _higher, "equal": _equal}[claim["direction"]]
    except KeyError as error:
        raise ConfigError(f"claim {claim['id']}: {error} is unknown; statistics: {', '.join(STATISTICS)}") from error
    a_curves, b = _curves(table, claim["a"], claim["metric"]), claim["b"]
    b_curves = None if isinstance(b, int | float) else _curves(table, b, claim["metric"])
    notes: list[str] = []
    a_values, b_values = [], []
    for seed, a_curve in a_curves.items():
        if b_curves is not None and seed not in b_curves:
            continue
        b_curve = None if b_curves is None else b_curves[seed]
        if np.isnan(a_curve.iloc[-1]) or (b_curve is not None and np.isnan(b_curve.iloc[-1])):  # one diverged
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
    if interval is None:
        notes.append("fewer than two seeds, or a run that diverged")
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


def share_of_run_to_reach(curve: pd.Series, other: pd.Series, notes: list[str], where_b_is_at: list[float]) -> float:
    """First step, as a share of the run, at which the metric is at or below a level; the mean over several levels.

    The levels are the values that group b's curve of the same seed has after the shares ``where_b_is_at`` of its run,
    so that the difference between the groups is the mean horizontal distance of their curves there. Both ways it is
    linear between log points. A level that is never reached counts as the whole run, which can only favour b.
    """
    levels = np.interp(np.array(where_b_is_at) * other.index[-1], other.index, other.to_numpy())
    shares = [_first_share_at(curve, level) for level in levels]
    missed = sum(share is None for share in shares)
    if missed:
        notes.append("some levels were never reached and count as the whole run")
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
    "share_of_run_to_reach": share_of_run_to_reach,
    "worst_deviation": worst_deviation,
}


def select(table: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """The rows whose columns have the given values."""
    chosen = pd.Series(True, index=table.index)
    for column, value in where.items():
        if column not in table:
            raise ConfigError(f"a claim selects {column}={value}, which does not vary between these runs")
        chosen &= table[column] == value
    return table[chosen]


def _curves(table: pd.DataFrame, where: Mapping[str, Any], metric: str) -> dict[int, pd.Series]:
    """Per seed, the metric by step where it was due; of a run that diverged the last value is missing."""
    rows = select(table, where)
    curves = {}
    for seed, part in rows.groupby("seed"):
        found = part["run"].nunique()
        if found != 1:
            raise ConfigError(f"claim group {dict(where)} holds {found} runs of seed {seed}, expected 1")
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


def _equal(interval: list[float], smallest: float) -> str:
    low, high = interval
    if -smallest <= low and high <= smallest:
        return "reproduced"
    return "contradicted" if low > smallest or high < -smallest else "inconclusive"
