"""The rules by which an interval becomes a verdict, and the correction for several claims. Called by ``claims``.

The difference ``d`` is that between group a and group b, turned so that the claim says "d is at least m", where m > 0
is the smallest difference that counts. ``[low, high]`` is its 95 % interval.

=============== ============================================ ======================== ====================
verdict         a is higher, or lower                        a is not worse           a and b are equal
=============== ============================================ ======================== ====================
reproduced      low >= m                                     low >= -m                inside [-m, m]
direction only  low > 0, low < m <= high
no difference   inside (-m, m)
contradicted    high < 0 and low <= -m                       high < -m                outside [-m, m]
inconclusive    all else                                     all else                 all else
=============== ============================================ ======================== ====================

With fewer than three seeds every verdict is ``inconclusive``. ``docs/verdicts.md`` has the rates of false verdicts.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

VERDICTS = ("reproduced", "direction only", "no difference", "contradicted", "inconclusive")
CONFIDENCE = 0.95  # of the intervals
LEAST_SEEDS = 3
EXPLORATORY_BELOW_SEEDS = 5

Interval = tuple[float, float]


def student_interval(differences: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the 95 % Student interval of the mean, with n - 1 degrees of freedom.

    Args:
        differences: n independent differences, n >= 2; for several samples at once of shape (samples, n).
    """
    values = np.asarray(differences, dtype=float)
    count = values.shape[-1]
    margin = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * values.std(axis=-1, ddof=1) / np.sqrt(count)
    return values.mean(axis=-1) - margin, values.mean(axis=-1) + margin


def verdict(kind: str, interval: Interval, smallest: float) -> str:
    """Return the verdict on a claim.

    Args:
        kind: ``lower``, ``higher``, ``not_worse`` or ``equal``.
        interval: of the difference a - b. For ``not_worse`` a positive difference means that a is better.
        smallest: the smallest difference that counts, > 0.
    """
    return KINDS[kind](interval, smallest)


def _higher(interval: Interval, m: float) -> str:
    """Return the verdict on "a is higher"."""
    low, high = interval
    if low >= m:
        return "reproduced"
    if low > 0 and high >= m:
        return "direction only"
    if -m < low and high < m:
        return "no difference"
    return "contradicted" if high < 0 and low <= -m else "inconclusive"


def _lower(interval: Interval, m: float) -> str:
    """Return the verdict on "a is lower": that on "a is higher" for the interval of b - a."""
    low, high = interval
    return _higher((-high, -low), m)


def _not_worse(interval: Interval, m: float) -> str:
    """Return the verdict on "a is not worse than b by more than m"."""
    low, high = interval
    return "reproduced" if low >= -m else "contradicted" if high < -m else "inconclusive"


def _equal(interval: Interval, m: float) -> str:
    """Return the verdict on "a and b are equal"."""
    low, high = interval
    if -m <= low and high <= m:
        return "reproduced"
    return "contradicted" if low > m or high < -m else "inconclusive"


KINDS: dict[str, Callable[[Interval, float], str]] = {
    "lower": _lower,
    "higher": _higher,
    "not_worse": _not_worse,
    "equal": _equal,
}


def p_value(kind: str, differences: Sequence[float], smallest: float) -> float:
    """Return the one-sided p-value of a claim: that of its boundary, a difference of just what counts or tolerates.

    For ``equal`` it is the larger of the two one-sided p-values. A claim of this kind, or another, is ``reproduced`` if
    and only if its p-value is at most 0.025.

    Args:
        kind: as in :func:`verdict`.
        differences: a - b by seed, at least two values; for ``not_worse`` positive where a is better.
        smallest: as in :func:`verdict`.
    """
    values = np.asarray(differences, dtype=float)
    if kind == "equal":
        return max(_p_above(values, -smallest), _p_above(-values, -smallest))
    return _p_above(-values if kind == "lower" else values, -smallest if kind == "not_worse" else smallest)


def _p_above(values: np.ndarray, bound: float) -> float:
    """Return the p-value of a one-sided Student test that the mean is at most ``bound``."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    if error == 0:
        return 0.0 if values.mean() >= bound else 1.0
    return float(stats.t.sf((values.mean() - bound) / error, len(values) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values after Holm's correction: the k-th smallest of n times n - k + 1, and never falling."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(order), 0, -1))
    return np.minimum(adjusted, 1).tolist()
