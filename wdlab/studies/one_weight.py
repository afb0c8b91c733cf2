"""One weight under a penalty, without network or data. Named in ``configs/figure``, called by ``analysis.tables``."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq

from wdlab.regularizers import Lp, PNormDecay, Regularizer

EPSILON = 1e-12  # of the gradient form; so small that it changes no path
METHODS = {"lp": Lp, "pnorm": PNormDecay}
DECIMALS = 9  # of every number in a row; later decimals differ between processors
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

    Both forms have the same fixed points: the solutions of ``w - target + s p sign(w) |w|^(p-1) = 0``, and 0 for p < 2.
    The ``fixed_point`` of a path is the one in which gradient flow from its start ends.

    A weight that jumps across zero in the last quarter of its path does not settle. For p < 1 each jump magnifies
    rounding, so that two machines soon follow different paths. Therefore only the number and the length of its jumps
    are kept after its first jump.

    Args:
        p: the exponents.
        targets: the minima of the loss.
        starts: the first values of the weights; by default a weight starts at its target.
        lr: the step size.
        strength: s.
        steps: the number of steps.
        log_every: the number of steps between two rows of a path.

    Returns:
        A row per path and logged step: ``run, regularizer`` (lp: in the gradient, pnorm: decoupled), ``p, target,
        start, seed`` (the number of the path among those of a method and p), ``step, weight, fixed_point, distance``
        (to the fixed point). In a path that does not settle, weight and distance are NaN after its first jump. Four
        columns describe the last quarter of a path and are the same in all its rows: ``jumps`` (the share of its steps
        that cross zero), ``step_size`` (the median length of a step), ``low`` and ``high`` (the quartiles of the
        weight).
    """
    points = [(t, s) for t in targets for s in (starts if starts is not None else [t])]
    parts = []
    for name, kind in METHODS.items():
        for power in p:
            paths = _paths(kind, power, strength, points, lr, steps)
            for k, (target, start) in enumerate(points):
                key = {"run": f"{name}-p{power}-{k}", "regularizer": name, "p": power, "seed": k}
                at = fixed_point(power, strength, target, start)
                rows = _rows(paths[:, k], at, log_every).assign(**key, target=target, start=start, fixed_point=at)
                parts.append(rows)
    table = pd.concat(parts).sort_values(["run", "step"], kind="stable", ignore_index=True)
    return table[list(COLUMNS)].round(DECIMALS)


def _paths(
    kind: type, p: float, strength: float, points: Sequence[tuple[float, float]], lr: float, steps: int
) -> np.ndarray:
    """Return the weights after each step, (steps + 1, paths)."""
    weights = torch.tensor([start for _, start in points], dtype=torch.float64, requires_grad=True)
    wanted = torch.tensor([target for target, _ in points], dtype=torch.float64)
    optimizer = torch.optim.SGD([weights], lr=lr)
    _method(kind, weights, strength, p).attach(optimizer)
    found = [weights.detach().clone()]
    for _ in range(steps):
        optimizer.zero_grad()
        ((weights - wanted).square().sum() / 2).backward()
        optimizer.step()
        found.append(weights.detach().clone())
    return torch.stack(found).numpy()


def _rows(path: np.ndarray, at: float, log_every: int) -> pd.DataFrame:
    """Return the logged rows of one path, (steps + 1,), whose fixed point is ``at``."""
    crossed = path[1:] * path[:-1] < 0
    end = len(path) * 3 // 4
    last = path[end:]
    jumps = crossed[end - 1 :].mean()
    kept = path.copy()
    if jumps:
        kept[np.argmax(crossed) + 1 :] = np.nan
    steps = [step for step in range(len(path)) if step % log_every == 0 or step == len(path) - 1]
    low, high = np.quantile(last, [0.25, 0.75])
    rows = pd.DataFrame({"step": steps, "weight": kept[steps], "distance": np.abs(kept[steps] - at)})
    return rows.assign(jumps=jumps, step_size=np.median(np.abs(np.diff(last))), low=low, high=high)


def _method(kind: type, weights: torch.Tensor, strength: float, p: float) -> Regularizer:
    """Create the regularizer of a form."""
    options = {"epsilon": EPSILON} if kind is Lp else {}
    return kind([weights], strength, p, **options)


def fixed_point(p: float, strength: float, target: float, start: float) -> float:
    """Return the end of gradient flow on ``(w - target)^2 / 2 + s |w|^p`` from ``start``; target and start >= 0.

    Above zero the slope is ``w - target + s p w^(p-1)``. For p >= 1 the slope grows with w. For p < 1 it falls from
    infinity to its minimum at ``w*`` and grows from there: a flow that starts below the first zero of the slope ends at
    0, as does every flow if there is no zero.

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
