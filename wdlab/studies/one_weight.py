"""Gradient descent on a single weight under a penalty, without a network or data.

``configs/figure`` names the function :func:`one_weight`, and ``wdlab.analysis.tables`` calls it.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq
from torch import Tensor

from wdlab.regularizers import Lp, PNormDecay, Regularizer

EPSILON = 1e-12  # epsilon of Lp, so small that it changes no path
METHODS = {"lp": Lp, "pnorm": PNormDecay}
DECIMALS = 9  # decimals of every number in a row; later decimals differ between processors
COLUMNS = (
    *("run", "regularizer", "p", "seed", "target", "start", "step", "weight", "fixed_point", "distance"),
    *("jumps", "step_size", "low", "high"),
)


def one_weight(
    p: Sequence[float],
    targets: Sequence[float],
    starts: Sequence[float] | None,
    lr: float,
    strength: float,
    steps: int,
    log_every: int,
) -> pd.DataFrame:
    """Follow gradient descent on ``(w - target)^2 / 2`` with penalty ``s |w|^p``, in the gradient and decoupled (P2).

    A *path* is the sequence of a weight's values for one method, p, target and start. Both methods have the same fixed
    points: the solutions of ``w - target + s p sign(w) |w|^(p-1) = 0``, and 0 for p < 2. The ``fixed_point`` of a path
    is the limit of gradient flow from the path's start.

    A weight that jumps across zero in the last quarter of its path does not settle. For p < 1 each jump magnifies
    rounding errors, so that two machines soon follow different paths. Therefore such a path has no weights after its
    first jump, only the statistics of its last quarter.

    Args:
        p: the exponents.
        targets: the minima of the loss, >= 0.
        starts: the first values of the weight, >= 0, each combined with every target; None: each path starts at its
            target.
        lr: the step size.
        strength: s.
        steps: the number of steps.
        log_every: the number of steps between two rows of a path.

    Returns:
        A row per path and logged step (the last step is always logged). Columns: ``run`` (name of the path),
        ``regularizer`` (lp: penalty in the gradient, pnorm: decoupled), ``p``, ``target``, ``start``, ``seed`` (number
        of the path among the paths of a method and p), ``step``, ``weight``, ``fixed_point``, ``distance`` (from the
        weight to the fixed point). In a path that does not settle, weight and distance are NaN after its first jump.
        Four columns describe the last quarter of a path and are the same in all its rows: ``jumps`` (share of the steps
        that cross zero), ``step_size`` (median length of a step), ``low`` and ``high`` (quartiles of the weight).

    Raises:
        ValueError: for a negative target or start.
    """
    points = [(t, s) for t in targets for s in (starts if starts is not None else [t])]
    parts = []
    for name, kind in METHODS.items():
        for power in p:
            paths = _paths(kind, power, strength, points, lr, steps)
            for k, (target, start) in enumerate(points):
                key = {"run": f"{name}-p{power}-{k}", "regularizer": name, "p": power, "seed": k}
                limit = fixed_point(power, strength, target, start)
                rows = _rows(paths[:, k], limit, log_every)
                parts.append(rows.assign(**key, target=target, start=start, fixed_point=limit))
    table = pd.concat(parts).sort_values(["run", "step"], kind="stable", ignore_index=True)
    return table[list(COLUMNS)].round(DECIMALS)


def _paths(
    kind: type, p: float, strength: float, points: Sequence[tuple[float, float]], lr: float, steps: int
) -> np.ndarray:
    """Return the paths of one method and p, shape (steps + 1, paths): the weights at the start and after each step.

    Args:
        kind: class of the method.
        p: the exponent.
        strength: s.
        points: ``(target, start)`` of each path.
        lr: the step size.
        steps: the number of steps.
    """
    weights = torch.tensor([start for _, start in points], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([target for target, _ in points], dtype=torch.float64)
    optimizer = torch.optim.SGD([weights], lr=lr)
    _method(kind, weights, strength, p).attach(optimizer)
    path = [weights.detach().clone()]
    for after_step in descend(optimizer, lambda w: w - targets, steps):
        path.append(after_step.clone())
    return torch.stack(path).numpy()


def descend(optimizer: torch.optim.Optimizer, slope: Callable[[Tensor], Tensor], steps: int) -> Iterator[Tensor]:
    """Make steps of an optimizer on a vector of independent weights, and yield the vector after each step.

    Args:
        optimizer: an optimizer of one tensor, shape (n,), with the methods attached to it.
        slope: the function that returns the derivative of each weight's loss without the penalty, shape (n,).
        steps: the number of steps.
    """
    (weights,) = optimizer.param_groups[0]["params"]
    for _ in range(steps):
        weights.grad = slope(weights.detach())
        optimizer.step()
        yield weights.detach()


def _rows(path: np.ndarray, limit: float, log_every: int) -> pd.DataFrame:
    """Return a path's logged rows, with the columns that depend on the path's weights (see :func:`one_weight`).

    The columns are ``step``, ``weight``, ``distance``, ``jumps``, ``step_size``, ``low`` and ``high``. If the weight
    crosses zero in the last quarter, ``weight`` and ``distance`` are NaN after the first crossing of the whole path.

    Args:
        path: the weight at the start and after each step, shape (steps + 1,).
        limit: the path's fixed point.
        log_every: the number of steps between two rows.
    """
    crossed = path[1:] * path[:-1] < 0
    end = len(path) * 3 // 4
    last = path[end:]
    jumps = crossed[end - 1 :].mean()
    kept = path.copy()
    if jumps:
        kept[np.argmax(crossed) + 1 :] = np.nan
    steps = [step for step in range(len(path)) if step % log_every == 0 or step == len(path) - 1]
    low, high = np.quantile(last, [0.25, 0.75])
    rows = pd.DataFrame({"step": steps, "weight": kept[steps], "distance": np.abs(kept[steps] - limit)})
    return rows.assign(jumps=jumps, step_size=np.median(np.abs(np.diff(last))), low=low, high=high)


def _method(kind: type, weights: torch.Tensor, strength: float, p: float) -> Regularizer:
    """Create a method of class ``kind`` on ``weights``, with ``EPSILON`` if the class is ``Lp``."""
    options = {"epsilon": EPSILON} if kind is Lp else {}
    return kind([weights], strength, p, **options)


def fixed_point(p: float, strength: float, target: float, start: float) -> float:
    """Return the limit of gradient flow on ``(w - target)^2 / 2 + s |w|^p`` from ``start``.

    Above zero the slope is ``w - target + s p w^(p-1)``. For p >= 1 the slope grows with w. For p < 1 the slope falls
    from infinity to its minimum and then grows. In this case the limit is 0 if the slope has no zero, or if the flow
    starts at or below the first zero. Otherwise the limit is the second zero.

    Args:
        p: the exponent, > 0.
        strength: s, > 0.
        target: the minimum of the loss, >= 0.
        start: the first value of the weight, >= 0.

    Raises:
        ValueError: for a negative target or start.
    """
    if target < 0 or start < 0:
        raise ValueError(f"target={target}, start={start}: must be >= 0")

    def slope(w: float) -> float:
        return w - target + strength * p * w ** (p - 1)

    if target == 0 or (p == 1 and target <= strength):
        return 0.0
    if p == 1:
        return target - strength
    if p > 1:
        return brentq(slope, 0.0, target, xtol=1e-15)
    least = (strength * p * (1 - p)) ** (1 / (2 - p))
    if slope(least) >= 0 or start <= brentq(slope, 1e-300, least, xtol=1e-300):
        return 0.0
    return brentq(slope, least, target, xtol=1e-15)
