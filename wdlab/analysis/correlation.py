"""Rank correlation of two columns over runs: Kendall's tau, plain, at a fixed third column, and within cells.

Called by ``tuning``, for claims about which metric ranks runs as another does, and by plots. A correlation over runs of
which one setting orders every column says nothing about the columns, so runs should differ in several settings, and the
correlation be taken ``within`` cells of equal settings, or at a ``given`` training loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

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
    taus = _taus([x, y] if given is None else [x, y, given], np.ones((1, len(x))) if counts is None else counts)
    found = taus[0, 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        if given is not None:
            left = np.where(taus[:2, 2] ** 2 > 1 - 1e-12, np.nan, 1 - taus[:2, 2] ** 2)
            found = (found - taus[0, 2] * taus[1, 2]) / np.sqrt(left[0] * left[1])
    return float(found[0]) if counts is None else found


def _taus(samples: Sequence[np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Return tau-b of each pair of samples for each row of ``counts``, (samples, samples, rows)."""
    values = [np.asarray(sample, dtype=float) for sample in samples]
    if not all(np.isfinite(value).all() for value in values):
        return np.full((len(values), len(values), len(counts)), np.nan)
    signs = [np.sign(value[:, None] - value) for value in values]  # of each pair of runs
    sums = np.array([[((counts @ (a * b)) * counts).sum(1) for b in signs] for a in signs])
    squares = np.array([sums[k, k] for k in range(len(values))])
    sizes = np.sqrt(squares[:, None] * squares)  # not a product of roots, so that the tau of equal orders is exactly 1
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sizes > 0, sums / sizes, np.nan)


def correlation(
    rows: pd.DataFrame, between: Sequence[str], given: str | None = None, within: Sequence[str] = ()
) -> float:
    """Return the rank correlation of two columns over runs, see :func:`kendall`.

    Args:
        rows: a row for each run.
        between: the two columns.
        given: the column to hold fixed; None for none.
        within: columns whose equal values make a cell. The result is the mean over the cells (Jiang et al. 2020, arXiv
            1912.02178), and NaN if that of a cell is. Empty for one cell.
    """
    return float(np.mean([kendall(*columns) for columns in _cells(rows, between, given, within)]))


def resampled(
    rows: pd.DataFrame, between: Sequence[str], given: str | None = None, within: Sequence[str] = (), seed: int = 0
) -> np.ndarray:
    """Return :func:`correlation` over ``RESAMPLES`` samples of the runs, drawn with replacement in each cell.

    Two calls with the same rows and the same ``within`` draw the same runs, so the difference of their results is a
    paired bootstrap. Resamples in which a cell has no correlation are NaN.
    """
    random, of_cells = np.random.default_rng(seed), []
    for columns in _cells(rows, between, given, within):
        count = len(columns[0])
        counts = random.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(float)
        of_cells.append(kendall(*columns, counts=counts))
    return np.mean(of_cells, axis=0)


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
        rule: the arguments ``between``, ``given`` and ``within``.
    """
    return {int(seed): correlation(rows, **rule) for seed, rows in last.groupby("seed")}


def _cells(
    rows: pd.DataFrame, between: Sequence[str], given: str | None, within: Sequence[str]
) -> list[list[np.ndarray]]:
    """Return the values of the columns in each cell."""
    parts = [part for _, part in rows.groupby(list(within), dropna=False)] if within else [rows]
    names = [*between, *([given] if given else [])]
    return [[part[name].to_numpy(float) for name in names] for part in parts]
