"""Rank correlation of two columns over runs: Kendall's tau, plain, at a fixed third column, and within cells.

Called by ``tuning``, for claims about which metric ranks runs as another does, and by plots. A correlation over runs of
which one setting orders every column says nothing about the columns, so runs should differ in several settings, and the
correlation be taken ``within`` cells of equal settings, or at a ``given`` training loss.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from wdlab.analysis.selection import settings

RESAMPLES = 2000
CONFIDENCE = 0.95  # of the intervals


def kendall(x: np.ndarray, y: np.ndarray, given: np.ndarray | None = None, counts: np.ndarray | None = None) -> Any:
    """Return Kendall's tau-b of two samples, the one of ``scipy.stats.kendalltau``, or the partial one.

    Partial is ``(t_xy - t_xz t_yz) / sqrt((1 - t_xz^2) (1 - t_yz^2))`` with ``z = given`` (Kendall 1942): the
    correlation of what of x and y does not follow the order of z.

    Args:
        x: n values.
        y: n values.
        given: n values to hold fixed; None for the plain tau.
        counts: how often each run counts, (resamples, n); None for once.

    Returns:
        A number in [-1, 1], or one for each resample, (resamples,). It is NaN if a value is not finite, if all values
        of a sample are equal, or if x or y has the order of ``given`` or its reverse.
    """
    weights = _weights(np.ones((1, len(x))) if counts is None else counts)
    found = _tau(_sums([x, y] if given is None else [x, y, given], weights))
    return float(found[0]) if counts is None else found


def _weights(counts: np.ndarray) -> np.ndarray:
    """Return how often each pair of runs counts, (rows, pairs), from how often each run does, (rows, runs)."""
    first, second = np.triu_indices(counts.shape[1], 1)
    return counts[:, first] * counts[:, second]


@functools.lru_cache(maxsize=2)
def _drawn_weights(sizes: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """Return :func:`_weights` of ``RESAMPLES`` samples with replacement, for cells of these numbers of runs."""
    random = np.random.default_rng(seed)
    draws = [random.multinomial(size, np.full(size, 1 / size), RESAMPLES).astype(float) for size in sizes]
    return [_weights(counts) for counts in draws]


def _sums(samples: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return the sum over pairs of runs of the product of two samples' signs, (samples, samples, rows).

    Args:
        samples: some values of each run.
        weights: how often each pair counts, see :func:`_weights`.
    """
    values = np.array([np.asarray(sample, dtype=float) for sample in samples])
    if not np.isfinite(values).all():
        return np.full((len(values), len(values), len(weights)), np.nan)
    first, second = np.triu_indices(values.shape[1], 1)
    signs = np.sign(values[:, first] - values[:, second])
    left, right = np.triu_indices(len(values))
    sums = np.empty((len(values), len(values), len(weights)))
    # einsum has no threads, which stall for a hundred times as long on a busy machine
    sums[left, right] = sums[right, left] = np.einsum("rp,kp->kr", weights, signs[left] * signs[right])
    return sums


def _tau(sums: np.ndarray) -> np.ndarray:
    """Return tau-b of the first two samples, at a fixed third one if there are three, from :func:`_sums`: (rows,)."""
    squares = np.array([sums[k, k] for k in range(len(sums))])
    sizes = np.sqrt(squares[:, None] * squares)  # not a product of roots, so that the tau of equal orders is exactly 1
    with np.errstate(invalid="ignore", divide="ignore"):
        taus = np.where(sizes > 0, sums / sizes, np.nan)
        if len(taus) == 2:
            return taus[0, 1]
        left = np.where(taus[:2, 2] ** 2 > 1 - 1e-12, np.nan, 1 - taus[:2, 2] ** 2)
        return (taus[0, 1] - taus[0, 2] * taus[1, 2]) / np.sqrt(left[0] * left[1])


def correlation(
    rows: pd.DataFrame, between: Sequence[str], given: str | None = None, within: Sequence[str] = ()
) -> float:
    """Return the rank correlation of two columns over runs, see :func:`kendall`.

    Args:
        rows: a row for each run.
        between: the two columns.
        given: the column to hold fixed; None for none.
        within: columns whose equal values make a cell. Only pairs of runs of one cell are compared. For cells of equal
            size without ties that is the mean over the cells (Jiang et al. 2020, arXiv 1912.02178). Unlike that mean it
            has a value if in one cell the metric orders the runs as ``given`` does. Empty for one cell.
    """
    cells = _cells(rows, between, given, within)
    return float(_tau(sum(_sums(columns, _weights(np.ones((1, len(columns[0]))))) for columns in cells))[0])


def resampled(
    rows: pd.DataFrame, between: Sequence[str], given: str | None = None, within: Sequence[str] = (), seed: int = 0
) -> np.ndarray:
    """Return :func:`correlation` over ``RESAMPLES`` samples of the runs, drawn with replacement in each cell.

    Two calls with as many rows in each cell draw the same rows, so the difference of their results is a paired
    bootstrap. Resamples without a correlation are NaN.
    """
    cells = _cells(rows, between, given, within)
    drawn = _drawn_weights(tuple(len(columns[0]) for columns in cells), seed)
    return _tau(sum(_sums(columns, weights) for columns, weights in zip(cells, drawn, strict=True)))


def resampled_settings(rows: pd.DataFrame, rule: Mapping[str, Any]) -> np.ndarray:
    """Return the mean over seeds of :func:`correlation` over samples of the settings, (``RESAMPLES``,).

    A setting is drawn with the runs of all seeds, since these are no independent evidence about other settings.

    Args:
        rows: a row for each run.
        rule: the arguments ``between``, ``given`` and ``within``.

    Raises:
        ValueError: if a seed lacks a setting that another one has.
    """
    rows = rows.assign(setting=settings(rows)).sort_values("setting", kind="stable")
    of_seeds = [part for _, part in rows.groupby("seed")]
    if any(list(part["setting"]) != list(of_seeds[0]["setting"]) for part in of_seeds):
        raise ValueError("a correlation over settings needs the same settings for each seed")
    return np.mean([resampled(part, **rule) for part in of_seeds], axis=0)


def interval(samples: np.ndarray) -> tuple[float, float]:
    """Return the ends of the 95 % percentile interval of the samples of :func:`resampled`, without those that are NaN.

    Both ends are NaN if all samples are.
    """
    finite = samples[np.isfinite(samples)]
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) if len(finite) else (np.nan, np.nan)
    return float(low), float(high)


def of_seeds(last: pd.DataFrame, rule: Mapping[str, Any]) -> dict[int, float]:
    """Return :func:`correlation` over the settings of each seed.

    Args:
        last: the last row of each run.
        rule: the arguments ``between``, ``given`` and ``within``. With ``either_way: true`` the values are multiplied
            by the sign of their mean, so that a metric counts as much if it orders the runs the other way round. The
            absolute value of each would be above zero also without any correlation.
    """
    inner = {key: value for key, value in rule.items() if key != "either_way"}
    values = {int(seed): correlation(rows, **inner) for seed, rows in last.groupby("seed")}
    if rule.get("either_way") and np.nanmean([0.0, *values.values()]) < 0:
        return {seed: -value for seed, value in values.items()}
    return values


def _cells(
    rows: pd.DataFrame, between: Sequence[str], given: str | None, within: Sequence[str]
) -> list[list[np.ndarray]]:
    """Return the values of the columns in each cell."""
    parts = [part for _, part in rows.groupby(list(within), dropna=False)] if within else [rows]
    names = [*between, *([given] if given else [])]
    return [[part[name].to_numpy(float) for name in names] for part in parts]
