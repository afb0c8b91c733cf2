"""Claims about curves, judged over seeds. Called by ``figures``; the claims are in ``configs/figure``.

A claim compares a statistic of each run's curve between two groups of runs, or between a group and a number. Pairs
share a seed. With ``d`` the mean paired difference (a - b), its 95 % bootstrap interval, and ``m`` the smallest
difference that counts, a claim that a is lower is

- ``reproduced`` if the whole interval is at or below -m,
- ``contradicted`` if the whole interval is above -m,
- ``inconclusive`` otherwise, or with fewer than two seeds.

``higher`` mirrors this. ``equal`` is reproduced if the interval is inside [-m, m], and contradicted if it is outside. A
contradicted claim lacks a difference that counts: its note reports a difference as stated but smaller, or none either
way.

A verdict on fewer than five seeds is marked as exploratory. With three seeds the interval is nearly always their range,
which (for normal differences) contains the true mean in 75 % of cases, with five in about 86 %.

A group that was tuned contains several runs of a seed. The claim then chooses one of them by its last log line:
``choose: {highest: val/accuracy}``, or ``choose: {lowest: sparsity/active_units, near_best: {highest: val/accuracy,
within: 0.01}}``, the fewest active units among the runs that are near the best of both groups. In addition,
``a_at_least: {sparsity/weights: 0.9}`` leaves only such runs of the first group.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from wdlab.analysis.statistics import STATISTICS
from wdlab.errors import ConfigError

VERDICTS = ("reproduced", "inconclusive", "contradicted")
EXPLORATORY_BELOW = 5  # seeds
RESAMPLES = 10_000


@dataclass
class _Pairs:
    """The statistic of both groups, by seed; NaN where one of the runs diverged or is missing."""

    a: list[float] = field(default_factory=list)
    b: list[float] = field(default_factory=list)


def judge(claim: Mapping[str, Any], table: pd.DataFrame) -> dict[str, Any]:
    """Return the verdict on one claim.

    Args:
        claim: ``id, statement, metric, statistic, a, b, direction, smallest_difference, reason``. ``a`` and ``b`` are
            column filters (``{regularizer: l2}``, ``{optimizer.p: [0.5, 0.8]}``); ``b`` may be a number.
            ``statistic`` has a ``name`` from ``STATISTICS`` and that function's options. With ``choose`` one run of
            each group and seed is taken, see above.
        table: the rows of the runs that the claim is about, as ``analysis.load`` returns them.

    Returns:
        The claim with ``n``, ``a_mean``, ``b_mean``, ``mean_difference``, ``interval``, ``verdict``, the runs that
        were ``chosen`` and, if there is something to add, ``note``.
    """
    _check_words(claim)
    filters = [where for where in (claim["a"], claim["b"]) if not isinstance(where, int | float)]
    groups = [select(table, where) for where in filters]
    notes: list[str] = []
    chosen = _chosen(groups, claim["choose"], notes) if "choose" in claim else groups
    seeds = sorted(set.intersection(*(set(rows["seed"]) for rows in groups)))
    outcome = _verdict(claim, _pairs(claim, chosen, seeds, notes), notes)
    if "choose" in claim:
        outcome["chosen"] = [sorted(set(rows["run"])) for rows in chosen]
    if notes:
        outcome["note"] = "; ".join(sorted(set(notes)))
    return dict(claim) | outcome


def _check_words(claim: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a statistic or a direction that does not exist."""
    for word, known in ((claim["statistic"]["name"], STATISTICS), (claim["direction"], VERDICT_RULES)):
        if word not in known:
            raise ConfigError(f"claim {claim['id']}: {word!r} is unknown; it must be one of {', '.join(known)}")


def _pairs(claim: Mapping[str, Any], groups: list[pd.DataFrame], seeds: Sequence[int], notes: list[str]) -> _Pairs:
    """Evaluate the claim's statistic for each seed, in both groups.

    Args:
        claim: the claim.
        groups: the rows of one run per seed, of both groups, or of the first if ``b`` is a number.
        seeds: the seeds to pair.
        notes: remarks for the reader are added here.
    """
    options = dict(claim["statistic"])
    statistic = STATISTICS[options.pop("name")]
    curves = [_curves(rows, claim["metric"], f"claim {claim['id']}") for rows in groups]
    pairs = _Pairs()
    for seed in seeds:
        found = [of_group[seed] for of_group in curves if seed in of_group]
        diverged = any(np.isnan(curve.iloc[-1]) for curve in found)
        if diverged:
            notes.append(f"of seed {seed} a run diverged")
        if diverged or len(found) < len(groups):
            pairs.a.append(float("nan"))
            pairs.b.append(float("nan"))
            continue
        other = found[1] if len(found) > 1 else None
        pairs.a.append(statistic(found[0], other, notes, **options))
        pairs.b.append(float(claim["b"]) if other is None else statistic(other, other, notes, **options))
    return pairs


def _verdict(claim: Mapping[str, Any], pairs: _Pairs, notes: list[str]) -> dict[str, Any]:
    """Judge the paired differences: their mean, its interval, and the verdict that follows from it."""
    differences = np.array(pairs.a) - np.array(pairs.b)
    interval, direction = bootstrap_interval(differences), claim["direction"]
    verdict = VERDICT_RULES[direction](interval, claim["smallest_difference"]) if interval else "inconclusive"
    if verdict == "contradicted" and direction != "equal":
        notes += _notes_on_small_differences(interval, direction)
    if len(differences) < 2:
        notes.append("fewer than two seeds")
    return {
        "n": len(differences),
        "exploratory": len(differences) < EXPLORATORY_BELOW,
        "a_mean": _mean(pairs.a),
        "b_mean": _mean(pairs.b),
        "mean_difference": _mean(differences),
        "interval": interval,
        "verdict": verdict,
    }


def bootstrap_interval(differences: np.ndarray) -> list[float] | None:
    """Return the 95 % percentile bootstrap interval of the mean; None without two values that are all finite."""
    if len(differences) < 2 or not np.isfinite(differences).all():
        return None
    result = stats.bootstrap(
        (differences,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    )
    return [float(result.confidence_interval.low), float(result.confidence_interval.high)]


def select(table: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows whose columns have the given values; a list means any of its values."""
    chosen = pd.Series(True, index=table.index)
    for column, value in where.items():
        if column not in table:
            raise ConfigError(f"a claim selects {column}={value}, which does not vary between these runs")
        chosen &= table[column].isin(value if isinstance(value, list) else [value])
    return table[chosen]


def last_lines(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the last log line of each run, once for each panel of the run."""
    of_a_run = [column for column in ("panel", "run") if column in rows]
    return rows.sort_values("step", kind="stable").groupby(of_a_run, sort=False).tail(1)


def over_seeds(rows: pd.DataFrame, by: str, columns: list[str]) -> pd.DataFrame:
    """Return ``mean``, ``min`` and ``max`` of each column over the seeds of the rows, per value of ``by``.

    A value of ``by`` for which a seed is missing is left out: a mean over only the seeds that did not diverge is
    another quantity.
    """
    found = rows.groupby(by)[columns]
    complete = (found.count() == rows["seed"].nunique()).all(axis=1)
    return found.agg(["mean", "min", "max"])[complete]


def _chosen(groups: Sequence[pd.DataFrame], choose: Mapping[str, Any], notes: list[str]) -> list[pd.DataFrame]:
    """Return the rows of one run per seed and group; where a seed has no candidate, a note is added."""
    ends = [last_lines(rows) for rows in groups]
    limits = [choose.get("a_at_least", {}), {}]
    result = []
    for side, rows, last, limit in zip("ab", groups, ends, limits, strict=False):
        runs = []
        for seed, part in last.groupby("seed"):
            run, why = _best_run(part, choose, limit, [end[end["seed"] == seed] for end in ends])
            if run is None:
                notes.append(f"of seed {seed} no run of {side} {why}")
            else:
                runs.append(run)
        result.append(rows[rows["run"].isin(runs)])
    return result


def _best_run(
    candidates: pd.DataFrame, choose: Mapping[str, Any], limit: Mapping[str, float], both: Sequence[pd.DataFrame]
) -> tuple[str | None, str]:
    """Choose the best of the last log lines of one group and seed.

    Args:
        candidates: the last log lines.
        choose: the rule of the claim.
        limit: by column, the least value that a candidate must have.
        both: the last log lines of both groups for the same seed.

    Returns:
        The name of the run, or None, and the condition that the last candidates had to meet.
    """
    sign, metric = _order(choose)
    candidates, why = candidates.dropna(subset=[metric]), "ended well"
    for column, least in limit.items():
        candidates, why = candidates[candidates[column] >= least], f"has {column} >= {least:g}"
    order = [sign * candidates[metric]]
    if near := choose.get("near_best"):
        near_sign, near_metric = _order(near)
        best = max((near_sign * end[near_metric]).max() for end in both)
        near_rank = near_sign * candidates[near_metric]
        candidates, why = candidates[near_rank >= best - near["within"]], f"is near the best {near_metric}"
        order.append(near_rank)  # decides between equals
    if candidates.empty:
        return None, why
    ranked = pd.concat([by[candidates.index] for by in order], axis=1).apply(tuple, axis=1)
    return candidates.loc[max(ranked.index, key=ranked.get), "run"], why


def _order(choose: Mapping[str, Any]) -> tuple[int, str]:
    """Return 1 for the ``highest`` of a metric, -1 for the ``lowest``, and the metric."""
    return (1, choose["highest"]) if "highest" in choose else (-1, choose["lowest"])


def _curves(rows: pd.DataFrame, metric: str, where: str) -> dict[int, pd.Series]:
    """Return the metric by step for each seed, without missing values; NaN at the end if the run diverged."""
    curves = {}
    for seed, part in rows.groupby("seed"):
        found = part["run"].nunique()
        if found != 1:
            raise ConfigError(f"{where}: {found} runs of seed {seed} in a group, expected 1; choose one by choose")
        curve = part.set_index("step")[metric].sort_index()
        curves[int(seed)] = curve[curve.notna() | (curve.index == curve.index[-1])]
    return curves


def _mean(values: Any) -> float | None:
    """Return the mean; None without values, or if one is not finite."""
    return float(np.mean(values)) if len(values) and np.isfinite(values).all() else None


def _lower(interval: list[float], smallest: float) -> str:
    """Return the verdict on "a is lower"."""
    low, high = interval
    return "reproduced" if high <= -smallest else "contradicted" if low > -smallest else "inconclusive"


def _higher(interval: list[float], smallest: float) -> str:
    """Return the verdict on "a is higher", the mirror image of lower."""
    low, high = interval
    return _lower([-high, -low], smallest)


def _notes_on_small_differences(interval: list[float], direction: str) -> list[str]:
    """Return the notes on a contradicted claim whose difference is not the opposite of what is claimed."""
    low, high = interval
    if low <= 0 <= high:
        return ["no difference that counts, either way"]
    return ["as stated, but by less than what counts"] if (high < 0) == (direction == "lower") else []


def _equal(interval: list[float], smallest: float) -> str:
    """Return the verdict on "a and b are equal"."""
    low, high = interval
    if -smallest <= low and high <= smallest:
        return "reproduced"
    return "contradicted" if low > smallest or high < -smallest else "inconclusive"


VERDICT_RULES: dict[str, Callable[[list[float], float], str]] = {"lower": _lower, "higher": _higher, "equal": _equal}
