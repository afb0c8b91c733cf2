"""The statistics of curves that claims may name. Called by ``claims``.

Each is a function (curve, group b's curve of the same seed, notes, options) -> number. A curve is a Series of the
metric, indexed by step, without missing values. Remarks for the reader are added to the notes.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from wdlab.errors import ConfigError


def value_at(curve: pd.Series, other: pd.Series | None, notes: list[str], step: int | str) -> float:
    """Return the metric at ``step``, which is a logged step or ``last``."""
    return float(curve.iloc[-1] if step == "last" else _at(curve, step))


def largest_after(curve: pd.Series, other: pd.Series | None, notes: list[str], share: float) -> float:
    """Return the largest value of the metric after a share of the run."""
    return float(curve[curve.index >= share * curve.index[-1]].max())


def share_of_run_to_reach(curve: pd.Series, other: pd.Series, notes: list[str], where_b_is_at: list[float]) -> float:
    """Return the first step, as a share of the run, at which the metric reaches a level; the mean over several levels.

    A level is reached where the metric is at or below it. The levels are the values of group b's curve of the same seed
    after the shares ``where_b_is_at`` of its run, so the difference between the groups is the mean horizontal distance
    of their curves there. Curves are linear between log points. A level that is never reached counts as the whole run,
    the least that it could take, which favours the curve that does not reach it.
    """
    levels = np.interp(np.array(where_b_is_at) * other.index[-1], other.index, other.to_numpy())
    shares = [_first_share_at(curve, level) for level in levels]
    missed = sum(share is None for share in shares)
    if missed:
        notes.append("some levels were never reached and count as the whole run, the least it can be")
    return float(np.mean([1.0 if share is None else share for share in shares]))


def _first_share_at(curve: pd.Series, level: float) -> float | None:
    """Return the share of the run after which a curve first is at or below a level; None if it never is."""
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
    """Return the largest deviation from reference values at their steps, absolute or relative to them."""
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
