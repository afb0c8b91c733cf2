"""Decoupled weight decay: Loshchilov and Hutter 2019, arXiv 1711.05101 (AdamW), on any optimizer, under any schedule::

w <- w - lr * factor * s * w          then          the optimizer's step on the loss gradient alone
"""

from collections.abc import Sequence

from tests.reference.base import SGD, Adam, Gradients, Steps, Tensors
from tests.reference.schedules import Factor, constant


def decoupled(
    weights: Tensors,
    gradients: Gradients,
    lrs: Sequence[float],
    strengths: Sequence[float],
    factor: Factor = constant,
    base: type[Adam | SGD] = Adam,
    **settings,
) -> Steps:
    """Yield the weights after each step of an optimizer with decoupled decay."""
    optimizers = [base(**settings) for _ in weights]
    for step, (gradient, lr) in enumerate(zip(gradients, lrs, strict=True)):
        now = factor(step, gradient, [s * w for w, s in zip(weights, strengths, strict=True)])
        decayed = [w * max(0.0, 1 - lr * now * s) for w, s in zip(weights, strengths, strict=True)]
        weights = [w - lr * o.direction(g) for w, o, g in zip(decayed, optimizers, gradient, strict=True)]
        yield weights
