"""Claims about curves, judged over seeds. Called by ``figures``; the claims are in ``configs/figure``.

A claim compares a statistic of each run's curve between two groups of runs, or between a group and a number. Pairs
share a seed. With ``d`` the mean paired difference (a - b), its 95 % bootstrap interval, and ``m`` the smallest
difference that counts, a claim that a is lower is

- ``reproduced`` if the whole interval is at or below -m,
- ``contradicted`` if the whole interval is above -m,
- ``inconclusive`` otherwise, or with fewer than two seeds.

A claim that a is ``higher`` is judged in the same way, with the signs reversed. ``equal`` is reproduced if the interval
is inside [-m, m], contradicted if the interval is outside, else inconclusive. A ``lower`` or ``higher`` claim may be
contradicted without the opposite being shown. Its note then reports that the difference is as stated, but less than m,
or that there is no difference that counts in either direction.

A verdict on fewer than five seeds is marked as exploratory. With three seeds the interval is nearly always their range,
which (for normal differences) contains the true mean in 75 % of cases, with five in about 86 %.

A group that was tuned contains several runs per seed. The claim then chooses one run per seed by the last log lines.
``choose: {highest: val/accuracy}`` chooses the run with the highest accuracy. ``choose: {lowest: sparsity/active_units,
near_best: {highest: val/accuracy, within: 0.01}}`` chooses the run with the fewest active units among those whose
accuracy is at most 0.01 below the best of both groups. With ``a_at_least: {sparsity/weights: 0.9}`` in ``choose``, only
runs of group a with at least this value are candidates; group b is not limited.
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
EXPLORATORY_BELOW_SEEDS = 5  # number of seeds
RESAMPLES = 10_000  # of the bootstrap


@dataclass
class _Pairs:
    """The statistic of group a and of group b, by seed; NaN in both if a run of the seed diverged or is missing."""

    a: list[float] = field(default_factory=list)
    b: list[float] = field(default_factory=list)


def judge(claim: Mapping[str, Any], table: pd.DataFrame) -> dict[str, Any]:
    """Return the verdict on one claim.

    Args:
        claim: ``id, statement, metric, statistic, a, b, direction, smallest_difference, reason``. ``a`` and ``b`` are
            column filters (``{regularizer: l2}``, ``{optimizer.p: [0.5, 0.8]}``); ``b`` may be a number.
            ``statistic`` has a ``name`` from ``STATISTICS`` and that function's options. With the optional ``choose``
            one run per group and seed is chosen, see the docstring of this module.
        table: the rows of the runs that the claim is about, as ``analysis.load`` returns them.

    Returns:
        The claim, with these keys added: ``n`` (the number of seeds), ``exploratory``, ``a_mean``, ``b_mean``,
        ``mean_difference``, ``interval`` and ``verdict``; with ``choose`` also ``chosen``, the names of the chosen runs
        of each group; and ``note``, if there are remarks for the reader.

    Raises:
        ConfigError: for an unknown statistic or direction, a column that the table lacks, or several runs of a seed
            without ``choose``.
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
    """Raise a ConfigError if a claim's statistic is not in ``STATISTICS`` or its direction not in ``VERDICT_RULES``."""
    for word, known in ((claim["statistic"]["name"], STATISTICS), (claim["direction"], VERDICT_RULES)):
        if word not in known:
            raise ConfigError(f"claim {claim['id']}: {word!r} is unknown; it must be one of {', '.join(known)}")


def _pairs(claim: Mapping[str, Any], groups: list[pd.DataFrame], seeds: Sequence[int], notes: list[str]) -> _Pairs:
    """Evaluate the claim's statistic for each seed, in both groups.

    Args:
        claim: the claim.
        groups: the rows of group a and of group b, with one run per seed; of group a alone if ``b`` is a number.
        seeds: the seeds to evaluate.
        notes: remarks for the reader, to which further remarks are appended.
    """
    options = dict(claim["statistic"])
    statistic = STATISTICS[options.pop("name")]
    curves = [_curves(rows, claim["metric"], f"claim {claim['id']}") for rows in groups]
    pairs = _Pairs()
    for seed in seeds:
        of_seed = [of_group[seed] for of_group in curves if seed in of_group]
        diverged = any(np.isnan(curve.iloc[-1]) for curve in of_seed)
        if diverged:
            notes.append(f"of seed {seed} a run diverged")
        if diverged or len(of_seed) < len(groups):
            pairs.a.append(float("nan"))
            pairs.b.append(float("nan"))
            continue
        other = of_seed[1] if len(of_seed) > 1 else None
        pairs.a.append(statistic(of_seed[0], other, notes, **options))
        pairs.b.append(float(claim["b"]) if other is None else statistic(other, other, notes, **options))
    return pairs


def _verdict(claim: Mapping[str, Any], pairs: _Pairs, notes: list[str]) -> dict[str, Any]:
    """Return the keys that :func:`judge` adds to a claim, except ``chosen`` and ``note``; add remarks to ``notes``."""
    differences = np.array(pairs.a) - np.array(pairs.b)
    interval, direction = bootstrap_interval(differences), claim["direction"]
    verdict = VERDICT_RULES[direction](interval, claim["smallest_difference"]) if interval else "inconclusive"
    if verdict == "contradicted" and direction != "equal":
        notes += _notes_on_small_differences(interval, direction)
    if len(differences) < 2:
        notes.append("fewer than two seeds")
    return {
        "n": len(differences),
        "exploratory": len(differences) < EXPLORATORY_BELOW_SEEDS,
        "a_mean": _mean(pairs.a),
        "b_mean": _mean(pairs.b),
        "mean_difference": _mean(differences),
        "interval": interval,
        "verdict": verdict,
    }


def bootstrap_interval(differences: np.ndarray) -> list[float] | None:
    """Return the mean's 95 % percentile bootstrap interval; None for fewer than two values, or if one is not finite."""
    if len(differences) < 2 or not np.isfinite(differences).all():
        return None
    result = stats.bootstrap(
        (differences,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    )
    return [float(result.confidence_interval.low), float(result.confidence_interval.high)]


def select(table: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of a table that pass a filter.

    Args:
        table: the rows.
        where: the required value by column, or a list of the values that are allowed.

    Raises:
        ConfigError: if the table has no such column.
    """
    chosen = pd.Series(True, index=table.index)
    for column, value in where.items():
        if column not in table:
            raise ConfigError(f"a claim selects {column}={value}, which does not vary between these runs")
        chosen &= table[column].isin(value if isinstance(value, list) else [value])
    return table[chosen]


def last_lines(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the row of each run's last log line. A run that is in several panels has one row for each of them."""
    of_a_run = [column for column in ("panel", "run") if column in rows]
    return rows.sort_values("step", kind="stable").groupby(of_a_run, sort=False).tail(1)


def summarize_over_seeds(rows: pd.DataFrame, by: str, columns: list[str]) -> pd.DataFrame:
    """Return ``mean``, ``min`` and ``max`` over the seeds, for each of ``columns`` and each value of column ``by``.

    A value of ``by`` at which a seed has no value is left out, since the mean over only those seeds that did not
    diverge is another quantity.

    Args:
        rows: the rows of one method, with a column ``seed``.
        by: the column to group by, such as ``step``.
        columns: the columns to summarize.

    Returns:
        A table indexed by the values of ``by``, with columns (column, ``mean``), (column, ``min``), (column, ``max``).
    """
    grouped = rows.groupby(by)[columns]
    complete = (grouped.count() == rows["seed"].nunique()).all(axis=1)
    return grouped.agg(["mean", "min", "max"])[complete]


def _chosen(groups: Sequence[pd.DataFrame], choose: Mapping[str, Any], notes: list[str]) -> list[pd.DataFrame]:
    """Return each group's rows of one chosen run per seed. If no run of a seed can be chosen, a note is appended."""
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
    """Choose the best run of one group and one seed by the last log lines.

    Args:
        candidates: the last log lines of the group's runs.
        choose: the rule of the claim, see the docstring of this module.
        limit: the least value that a candidate must have, by column.
        both: the last log lines of group a and of group b for this seed; ``near_best`` is measured over both groups.

    Returns:
        The name of the best run, or None if no candidate passes all filters; and the last filter that was applied, in
        words that complete "no run of a ...".
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
        order.append(near_rank)  # decides between equal values
    if candidates.empty:
        return None, why
    ranked = pd.concat([by[candidates.index] for by in order], axis=1).apply(tuple, axis=1)
    return candidates.loc[max(ranked.index, key=ranked.get), "run"], why


def _order(choose: Mapping[str, Any]) -> tuple[int, str]:
    """Return the sign by which a rule orders runs (1 for ``highest``, -1 for ``lowest``), and the rule's metric."""
    return (1, choose["highest"]) if "highest" in choose else (-1, choose["lowest"])


def _curves(rows: pd.DataFrame, metric: str, where: str) -> dict[int, pd.Series]:
    """Return the metric by step for each seed, without missing values. The last value of a diverged run is NaN.

    Args:
        rows: the rows of a group, with one run per seed.
        metric: a column of the rows.
        where: the claim, as the error names it.

    Raises:
        ConfigError: if a seed has several runs.
    """
    curves = {}
    for seed, part in rows.groupby("seed"):
        count = part["run"].nunique()
        if count != 1:
            raise ConfigError(f"{where}: {count} runs of seed {seed} in a group, expected 1; choose one by choose")
        curve = part.set_index("step")[metric].sort_index()
        curves[int(seed)] = curve[curve.notna() | (curve.index == curve.index[-1])]
    return curves


def _mean(values: Any) -> float | None:
    """Return the mean; None if there are no values or a value is not finite."""
    return float(np.mean(values)) if len(values) and np.isfinite(values).all() else None


def _lower(interval: list[float], smallest: float) -> str:
    """Return the verdict on "a is lower" for the interval of a - b and the smallest difference that counts."""
    low, high = interval
    return "reproduced" if high <= -smallest else "contradicted" if low > -smallest else "inconclusive"


def _higher(interval: list[float], smallest: float) -> str:
    """Return the verdict on "a is higher": that on "a is lower" with the signs of the interval reversed."""
    low, high = interval
    return _lower([-high, -low], smallest)


def _notes_on_small_differences(interval: list[float], direction: str) -> list[str]:
    """Return the note on a contradicted claim, in a list that is empty if the opposite of the claim is shown."""
    low, high = interval
    if low <= 0 <= high:
        return ["no difference that counts, either way"]
    return ["as stated, but by less than what counts"] if (high < 0) == (direction == "lower") else []


def _equal(interval: list[float], smallest: float) -> str:
    """Return the verdict on "a and b are equal" for the interval of a - b and the smallest difference that counts."""
    low, high = interval
    if -smallest <= low and high <= smallest:
        return "reproduced"
    return "contradicted" if low > smallest or high < -smallest else "inconclusive"


VERDICT_RULES: dict[str, Callable[[list[float], float], str]] = {"lower": _lower, "higher": _higher, "equal": _equal}
