"""The statistics of a run that claims may name. Called by ``claims``.

Each statistic is a function of a ``Curve``; of the curve ``other``, that of the other group's run with the same seed
(None if the claim compares with a number, or if that run diverged); and of the options that the claim gives. It
returns a number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from wdlab.errors import ConfigError


@dataclass
class Curve:
    """The log lines of one run, and the metric that a claim is about.

    Attributes:
        rows: the run's rows, in the order of their column ``step``.
        metric: a column of the rows.
        worst: the value that the metric counts as where a statistic is never reached.
        in_a: whether the run is in group a of the claim.
        notes: remarks for the reader, to which a statistic may append.
    """

    rows: pd.DataFrame
    metric: str
    worst: float
    in_a: bool = True
    notes: list[str] = field(default_factory=list)

    @cached_property
    def values(self) -> pd.Series:
        """The metric by step, without missing values."""
        return self.of(self.metric)

    def of(self, column: str) -> pd.Series:
        """Return another column by step, without missing values."""
        return self.rows.set_index("step")[column].dropna()

    @property
    def diverged(self) -> bool:
        """True if the last log line has no value of the metric, or one that is not finite."""
        return not np.isfinite(self.rows[self.metric].iloc[-1])


def value_at(curve: Curve, other: Curve | None, step: int | str) -> float:
    """Return the metric at ``step``, a logged step or ``last``. ``other`` is not used."""
    return float(curve.values.iloc[-1] if step == "last" else _at(curve.values, step))


def largest_after(curve: Curve, other: Curve | None, share: float) -> float:
    """Return the metric's largest value after the share (0 to 1) of the run. ``other`` is not used."""
    values = curve.values
    return float(values[values.index >= share * values.index[-1]].max())


def mean_after(curve: Curve, other: Curve | None, share: float) -> float:
    """Return the metric's geometric mean over the log lines after the share (0 to 1) of the run. ``other`` is not used.

    For a metric that is measured on single mini-batches, and so scatters from one log line to the next.
    """
    values = curve.values
    return float(np.exp(np.log(values[values.index > share * values.index[-1]]).mean()))


def mean_once_both_below(curve: Curve, other: Curve | None, of: str, level: float) -> float:
    """Return the geometric mean of the metric from the log line on at which both runs have reached a level.

    The difference of the logarithms of two runs is then the mean of the logarithm of their ratio. A spike later on
    counts with all its lines. A level that is never reached does not favour the claim: a run of group a that does not
    reach it counts as the worst value, and if only the run of group b does not, both count as its last value.

    Args:
        curve: the run.
        other: the run of the other group; None if it diverged. Then the last value of ``curve`` is returned.
        of: the column that reaches the level, such as ``train/loss``.
        level: the level; it is reached at the first log line with a value at or below.
    """
    last = float(curve.values.iloc[-1])
    if other is None:
        return last
    begin, begin_of_other = _first_step_below(curve.of(of), level), _first_step_below(other.of(of), level)
    if begin is None or begin_of_other is None:
        missed = "a" if (begin if curve.in_a else begin_of_other) is None else "b"
        counted = "its worst value is counted" if missed == "a" else "no difference is counted"
        curve.notes.append(f"a run of {missed} never has {of} <= {level:g}: {counted}")
        if not curve.in_a:
            return last
        return curve.worst if begin is None else float(other.values.iloc[-1])
    shared = curve.values.index.intersection(other.values.index)
    values = curve.values[shared[shared >= max(begin, begin_of_other)]]
    return float(np.exp(np.log(values).mean()))


def _first_step_below(values: pd.Series, level: float) -> float | None:
    """Return the first step with a value at or below a level; None if there is none."""
    steps = values.index[values <= level]
    return None if steps.empty else steps[0]


def worst_deviation(curve: Curve, other: Curve | None, reference: Mapping[int, float], relative: bool) -> float:
    """Return the largest absolute deviation of the metric from reference values. ``other`` is not used.

    Args:
        curve: the run.
        other: not used.
        reference: reference values by step; each step was logged.
        relative: True to divide each deviation by its reference value.
    """
    deviations = [
        abs(_at(curve.values, step) - value) / (value if relative else 1) for step, value in reference.items()
    ]
    return float(max(deviations))


def _at(values: pd.Series, step: int) -> float:
    """Return the value at a logged step.

    Raises:
        ConfigError: if the step was not logged.
    """
    if step not in values.index:
        raise ConfigError(f"a claim names step {step}, which is not logged")
    return values.loc[step]


def median_curve(curves: Sequence[Curve]) -> Curve:
    """Return a curve that has at each step the median of the metric over the curves that have a value there."""
    metric = curves[0].metric
    median = pd.concat([curve.values for curve in curves], axis=1).median(axis=1)
    return Curve(median.rename(metric).rename_axis("step").reset_index(), metric, curves[0].worst)


STATISTICS: dict[str, Callable[..., float]] = {
    "value_at": value_at,
    "largest_after": largest_after,
    "mean_after": mean_after,
    "mean_once_both_below": mean_once_both_below,
    "worst_deviation": worst_deviation,
}
NEED_A_GROUP_B = ("mean_once_both_below",)
