"""Huber decay: Guo and Fan 2025, arXiv 2511.14721, on any optimizer.

With ``u`` a weight after the optimizer's step and ``t = lr s``::

    w = u / (1 + t)              where |u| <= (1 + t) delta
    w = u - t delta sign(u)      elsewhere
"""

import math
from collections.abc import Sequence

from tests.reference.base import SGD, Adam, Gradients, Steps, Tensors, changed_one_by_one


def decayed(u: float, t: float, delta: float) -> float:
    """Return one weight after the decay."""
    if abs(u) <= (1 + t) * delta:
        return u / (1 + t)
    return u - t * delta * math.copysign(1, u)


def huber(
    weights: Tensors,
    gradients: Gradients,
    lrs: Sequence[float],
    strengths: Sequence[float],
    delta: float,
    base: type[Adam | SGD] = SGD,
    **settings,
) -> Steps:
    """Yield the weights after each step of an optimizer with Huber decay after its own step."""
    return changed_one_by_one(lambda u, t: decayed(u, t, delta), weights, gradients, lrs, strengths, base, settings)
