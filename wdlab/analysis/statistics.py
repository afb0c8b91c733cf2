"""The statistics of curves that claims may name. Called by ``claims``.

Each statistic is a function of a run's ``curve``; the curve ``other`` of group b's run with the same seed, None if the
claim compares with a number; ``notes``, a list to which remarks for the reader are appended; and the options that the
claim gives. It returns a number. A curve is a Series of the metric, indexed by step, without missing values. Some
statistics do not use ``other`` or ``notes``.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from wdlab.errors import ConfigError


def value_at(curve: pd.Series, other: pd.Series | None, notes: list[str], step: int | str) -> float:
    """Return the metric at ``step``, a logged step or ``last``. ``other`` and ``notes`` are not used."""
    return float(curve.iloc[-1] if step == "last" else _at(curve, step))


def largest_after(curve: pd.Series, other: pd.Series | None, notes: list[str], share: float) -> float:
    """Return the metric's largest value after the share (0 to 1) of the run. ``other`` and ``notes`` are not used."""
    return float(curve[curve.index >= share * curve.index[-1]].max())


def share_of_run_to_reach(curve: pd.Series, other: pd.Series, notes: list[str], where_b_is_at: list[float]) -> float:
    """Return the share of the run after which the metric is first at or below a level; the mean over several levels.

    The difference between the groups is then the mean horizontal distance of their curves at these levels. Curves are
    linear between log points. A level that is never reached counts as the whole run, the least that reaching it could
    take, which favours the curve that does not reach the level.

    Args:
        curve: the metric by step.
        other: the curve of group b's run with the same seed.
        notes: a note is appended if a level is never reached.
        where_b_is_at: shares (0 to 1) of group b's run; the levels are the values of ``other`` after these shares.
    """
    levels = np.interp(np.array(where_b_is_at) * other.index[-1], other.index, other.to_numpy())
    shares = [_first_share_at(curve, level) for level in levels]
    missed = sum(share is None for share in shares)
    if missed:
        notes.append("some levels were never reached and count as the whole run, the least it can be")
    return float(np.mean([1.0 if share is None else share for share in shares]))


def _first_share_at(curve: pd.Series, level: float) -> float | None:
    """Return the share of the run after which a piecewise linear curve is first at or below a level; None if never."""
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
    """Return the largest absolute deviation of the metric from reference values. ``other`` and ``notes`` are not used.

    Args:
        curve: the metric by step.
        other: not used.
        notes: not used.
        reference: reference values by step; each step was logged.
        relative: True to divide each deviation by its reference value.
    """
    deviations = [abs(_at(curve, step) - value) / (value if relative else 1) for step, value in reference.items()]
    return float(max(deviations))


def _at(curve: pd.Series, step: int) -> float:
    """Return the metric at a logged step.

    Raises:
        ConfigError: if the step was not logged.
    """
    if step not in curve.index:
        raise ConfigError(f"a claim names step {step}, which is not logged")
    return curve.loc[step]


STATISTICS: dict[str, Callable[..., float]] = {
    "value_at": value_at,
    "largest_after": largest_after,
    "share_of_run_to_reach": share_of_run_to_reach,
    "worst_deviation": worst_deviation,
}
