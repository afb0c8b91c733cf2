"""Huber decay: Guo and Fan 2025, arXiv 2511.14721, on any optimizer.

With ``u`` a weight after the optimizer's step and ``t = lr s``::

    w = u / (1 + t)              where |u| <= (1 + t) delta
    w = u - t delta sign(u)      elsewhere
"""

import math
from collections.abc import Sequence

import torch

from tests.reference.base import SGD, Adam, Gradients, Steps, Tensors


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
    optimizers = [base(**settings) for _ in weights]
    for gradient, lr in zip(gradients, lrs, strict=True):
        after = [w - lr * o.direction(g) for w, o, g in zip(weights, optimizers, gradient, strict=True)]
        weights = [
            torch.tensor([decayed(x, lr * s, delta) for x in u.flatten().tolist()]).reshape(u.shape)
            for u, s in zip(after, strengths, strict=True)
        ]
        yield weights
