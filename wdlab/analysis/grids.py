"""The share of settings that are nearly as good as the best, and how the best strength depends on another setting.

Called by ``tuning``, for claims about a grid of settings such as learning rates and strengths, and by fig17.
"""

import numpy as np
import pandas as pd

NEIGHBOURS = 2  # settings on each side of the best one to which a parabola is fitted


def best_along(x: np.ndarray, y: np.ndarray) -> float:
    """Return the place of the least ``y``, by a parabola through its neighbourhood.

    The parabola is fitted by least squares to the least value and up to ``NEIGHBOURS`` values on each side. Its vertex
    is returned, if it lies between the values that it was fitted to, else the place of the nearest of them. Without a
    vertex, or with fewer than three values, the place of the least value is returned.

    Args:
        x: rising places.
        y: a finite value for each place.
    """
    least = int(np.argmin(y))
    near = slice(max(least - NEIGHBOURS, 0), least + NEIGHBOURS + 1)
    x, y = x[near], y[near]
    if len(x) < 3:
        return float(x[np.argmin(y)])
    curvature, slope, _ = np.polyfit(x, y, 2)
    vertex = -slope / (2 * curvature) if curvature > 0 else x[np.argmin(y)]
    return float(np.clip(vertex, x[0], x[-1]))


def best_strengths(last: pd.DataFrame, column: str, sign: int, along: str, over: str) -> pd.DataFrame:
    """Return the logarithm of the best strength for each seed and learning rate, see :func:`best_along`.

    Args:
        last: the last rows of the runs of a grid. Runs that diverged are left out.
        column: the column that decides, a loss or an accuracy; the parabola is fitted to the logarithm of a loss.
        sign: 1 if the highest value is the best, -1 if the lowest is.
        along: the column of the strength.
        over: the column of the learning rate.

    Returns:
        A table with a row for each seed and a column for each learning rate; NaN where all runs of a seed diverged.
    """
    ended = last[np.isfinite(last[column])].sort_values(along)
    best = {
        (seed, rate): best_along(
            np.log(part[along].to_numpy(float)),
            np.log(part[column]).to_numpy() if sign < 0 else -part[column].to_numpy(),
        )
        for (seed, rate), part in ended.groupby(["seed", over])
    }
    seeds, rates = (np.sort(last[name].unique()) for name in ("seed", over))
    return pd.DataFrame([[best.get((seed, rate), np.nan) for rate in rates] for seed in seeds], seeds, rates)


def slopes_of_best(last: pd.DataFrame, column: str, sign: int, along: str, over: str) -> dict[int, float]:
    """Return for each seed the slope of ``log(best strength)`` over ``log(learning rate)``, by least squares.

    It is NaN if all runs of a seed diverged at a learning rate. The arguments are those of :func:`best_strengths`.
    """
    best = best_strengths(last, column, sign, along, over)
    rates = np.log(best.columns.to_numpy(float))
    rates -= rates.mean()
    slopes = best.to_numpy() @ rates / (rates @ rates)
    return dict(zip(map(int, best.index), slopes.tolist(), strict=True))


def shares_within(last: pd.DataFrame, column: str, sign: int, level: float) -> dict[int, float]:
    """Return for each seed the share of settings whose ``sign * column`` is at least ``level``; NaN is not."""
    return {int(seed): float(near.mean()) for seed, near in (sign * last[column] >= level).groupby(last["seed"])}
