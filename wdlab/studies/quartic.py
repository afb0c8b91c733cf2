"""One weight with the loss ``(w - 1)^4 / 4`` under decoupled p-norm decay, as in P2: its end, and when that is zero.

``configs/figure`` names the functions :func:`end_points` and :func:`critical_strengths`, and ``wdlab.analysis.tables``
calls them. The strength s is that of P2's example, in which the factor of the decay has no p:
``|w|^(2-p) / (|w|^(2-p) + lr s)``. The penalty is then ``(s / p) |w|^p``, with p < 1.

Above zero, gradient flow moves the weight up where s is below ``f(w) = (1 - w)^3 w^(1-p)``, and down where s is above
it. f grows to its peak at ``w = (1 - p) / (4 - p)`` and then falls to f(1) = 0.
"""

import itertools
from collections import deque
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq
from torch import Tensor

from wdlab.regularizers import OverTime, PNormDecay
from wdlab.studies.one_weight import DECIMALS, descend


def end_points(p: float, starts: Sequence[float], strengths: Sequence[float], lr: float, steps: int) -> pd.DataFrame:
    """Follow a weight from each start under each strength to its last step.

    Args:
        p: the exponent, in (0, 1).
        starts: the first values of the weight, in (0, 1].
        strengths: s.
        lr: the step size.
        steps: the number of steps.

    Returns:
        A row per start and strength, with the columns ``run`` (name of the path), ``regularizer`` (pnorm), ``p``,
        ``seed`` (number of the path), ``start``, ``s``, ``step``, ``weight`` (at this step), ``fixed_point`` (the limit
        of gradient flow from the start), ``distance`` (from the weight to the fixed point) and ``minimum`` (the weight
        at which loss and penalty together are least).
    """
    points = np.array(list(itertools.product(starts, strengths)))
    ends = _ends(p, points[:, 0], points[:, 1], lr, steps)
    limits = [fixed_point(p, s, start) for start, s in points]
    rows = _design(p, points[:, 0], "end").assign(s=points[:, 1], step=steps, weight=ends, fixed_point=limits)
    rows["distance"] = np.abs(ends - rows["fixed_point"])
    return rows.assign(minimum=[minimum(p, s) for _, s in points]).round(DECIMALS)


def critical_strengths(
    p: Sequence[float], starts: Sequence[float], small: float, lr: float, steps: int, tolerance: float
) -> pd.DataFrame:
    """Find the critical strength of each start, above which a weight ends at zero, by bisection over simulated paths.

    Args:
        p: the exponents, in (0, 1).
        starts: the first values of the weight, in (0, 1].
        small: the largest start that the fit of the exponent uses.
        lr: the step size.
        steps: the number of steps of each path.
        tolerance: the largest relative error of a critical strength, apart from the finite number of steps.

    Returns:
        A row per p and start, with the columns ``run``, ``regularizer`` (pnorm), ``p``, ``seed`` (number of the row),
        ``start``, ``step``, ``critical`` (the critical strength), ``flow`` (that of gradient flow, exact) and
        ``critical_error`` (log critical minus log flow). Two columns are the same in all rows of a p: ``exponent`` (the
        slope of log critical strength on log start, by least squares over the starts up to ``small``) and
        ``exponent_error`` (the exponent minus (1 - p)).
    """
    points, parts = np.array(starts, dtype=float), []
    for power in p:
        low, high = points / 10, np.ones(len(points))  # for every p the critical strength is between these
        while (high / low > 1 + tolerance).any():
            middle = np.sqrt(low * high)
            is_zero = _ends(power, points, middle, lr, steps) == 0
            low, high = np.where(is_zero, low, middle), np.where(is_zero, middle, high)
        critical, fitted = np.sqrt(low * high), points <= small
        exponent = np.polyfit(np.log(points[fitted]), np.log(critical[fitted]), 1)[0]
        rows = _design(power, points, "critical").assign(step=steps, critical=critical)
        rows["flow"] = [critical_strength(power, start) for start in points]
        rows["critical_error"] = np.log(rows["critical"] / rows["flow"])
        parts.append(rows.assign(exponent=exponent, exponent_error=exponent - (1 - power)))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(seed=range(len(table))).round(DECIMALS)


def critical_strength(p: float, start: float) -> float:
    """Return the strength above which gradient flow from ``start`` ends at zero.

    This is f at the start, or at the peak of f if the start is above the peak (see the docstring of this module). For
    small starts it grows as ``start^(1-p)``.

    Raises:
        ValueError: for a p outside (0, 1), or a start outside (0, 1].
    """
    if not 0 < p < 1 or not 0 < start <= 1:
        raise ValueError(f"p={p}, start={start}: p must be in (0, 1), start in (0, 1]")
    w = min(start, _peak(p))
    return (1 - w) ** 3 * w ** (1 - p)


def fixed_point(p: float, s: float, start: float) -> float:
    """Return the limit of gradient flow from ``start``: 0, or the larger of the two weights at which f equals s.

    Raises:
        ValueError: for a p outside (0, 1), or a start outside (0, 1].
    """
    if s >= critical_strength(p, start):
        return 0.0
    return brentq(lambda w: (w - 1) ** 3 + s * w ** (p - 1), _peak(p), 1.0, xtol=1e-15)


def minimum(p: float, s: float) -> float:
    """Return the weight at which ``(w - 1)^4 / 4 + (s / p) w^p`` is least: the larger fixed point, or 0."""
    larger = fixed_point(p, s, 1.0)
    return larger if (larger - 1) ** 4 / 4 + s / p * larger**p < 1 / 4 else 0.0


def _peak(p: float) -> float:
    """Return the weight at which ``f`` is largest."""
    return (1 - p) / (4 - p)


def _design(p: float, starts: np.ndarray, what: str) -> pd.DataFrame:
    """Return the first columns of a row for each start: ``run``, ``regularizer``, ``p``, ``seed`` and ``start``.

    Args:
        p: the exponent.
        starts: shape (rows,).
        what: a word for the names of the runs.
    """
    numbers = range(len(starts))
    names = [f"pnorm-p{p}-{what}-{k}" for k in numbers]
    return pd.DataFrame({"run": names, "regularizer": "pnorm", "p": p, "seed": numbers, "start": starts})


class _PerWeight(OverTime):
    """A constant factor of its own for each element of the method's parameter, as in a stack of runs."""

    def __init__(self, factors: Tensor) -> None:
        self._factors = factors

    def factor(self, *_: object) -> Tensor:
        return self._factors


def _ends(p: float, starts: np.ndarray, strengths: np.ndarray, lr: float, steps: int) -> np.ndarray:
    """Return the last weight of each path, shape (paths,).

    Args:
        p: the exponent.
        starts: the first weight of each path, shape (paths,).
        strengths: s of each path, shape (paths,).
        lr: the step size.
        steps: the number of steps.
    """
    weights = torch.tensor(starts, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=lr)
    PNormDecay([weights], 1.0, p, over_time=_PerWeight(torch.tensor(strengths / p))).attach(optimizer)
    (last,) = deque(descend(optimizer, lambda w: (w - 1) ** 3, steps), maxlen=1)
    return last.numpy()
