"""Penalties in the gradient of the loss, under any schedule: L2, L1 and the Bridge penalty kept finite at 0 (P2).

Park et al. 2018, arXiv 1811.08056 (P3), regularizes in this way, with or without its gate::

    w <- w - lr * direction(g + factor * s * dR/dw)

``direction`` is the optimizer's.
"""

import math
from collections.abc import Callable, Sequence

import torch

from tests.reference.base import SGD, Adam, Gradients, Steps, Tensors
from tests.reference.schedules import Factor, constant


def l2(w: float) -> float:
    """Return the slope of ``w^2 / 2``."""
    return w


def l1(w: float) -> float:
    """Return the slope of ``|w|``, 0 at 0."""
    return 0.0 if w == 0 else math.copysign(1.0, w)


def lp(p: float, epsilon: float) -> Callable[[float], float]:
    """The slope of ``(|w| + epsilon)^p``, 0 at 0."""
    return lambda w: l1(w) * p * (abs(w) + epsilon) ** (p - 1)


def in_loss(
    weights: Tensors,
    gradients: Gradients,
    lrs: Sequence[float],
    strengths: Sequence[float],
    slope: Callable[[float], float] = l2,
    factor: Factor = constant,
    base: type[Adam | SGD] = SGD,
    **settings,
) -> Steps:
    """Yield the weights after each step of an optimizer that sees the sum of both gradients."""
    optimizers = [base(**settings) for _ in weights]
    for step, (gradient, lr) in enumerate(zip(gradients, lrs, strict=True)):
        penalty = [
            torch.tensor([s * slope(x) for x in w.flatten().tolist()]).reshape(w.shape)
            for w, s in zip(weights, strengths, strict=True)
        ]
        now = factor(step, gradient, penalty)
        totals = [g + now * r for g, r in zip(gradient, penalty, strict=True)]
        weights = [w - lr * o.direction(t) for w, o, t in zip(weights, optimizers, totals, strict=True)]
        yield weights
