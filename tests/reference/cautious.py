"""Cautious weight decay: Chen et al. 2025, arXiv 2510.12402, for any decoupled decay on any optimizer::

u = lr * direction(g)
w <- decay(w - u)   where u * w >= 0,   else   w - u
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.reference.base import SGD, Adam, Gradients, Steps, Tensors
from tests.reference.schedules import Factor, constant

Decay = Callable[[Tensor, Tensor, float], Tensor]  # of the weight before and after the step, with t = lr * s


def plain(before: Tensor, after: Tensor, t: float) -> Tensor:
    """The decay of AdamW."""
    return after - t * before


def pnorm(p: float, late: bool = False) -> Decay:
    """The decay of pAdam."""
    return lambda before, after, t: after / (1 + p * t * (after if late else before).abs() ** (p - 2))


def soft_threshold(before: Tensor, after: Tensor, t: float) -> Tensor:
    """The proximal step on ``t |w|``."""
    return after.sign() * (after.abs() - t).clamp(min=0)


def cautious(
    weights: Tensors,
    gradients: Gradients,
    lrs: Sequence[float],
    strengths: Sequence[float],
    decay: Decay = plain,
    factor: Factor = constant,
    base: type[Adam | SGD] = SGD,
    **settings,
) -> Steps:
    """Yield the weights after each step of an optimizer with cautious decay."""
    optimizers = [base(**settings) for _ in weights]
    for step, (gradient, lr) in enumerate(zip(gradients, lrs, strict=True)):
        now = factor(step, gradient, [s * w for w, s in zip(weights, strengths, strict=True)])
        updates = [lr * o.direction(g) for o, g in zip(optimizers, gradient, strict=True)]
        weights = [
            torch.where(u * w >= 0, decay(w, w - u, lr * now * s), w - u) if s else w - u
            for w, u, s in zip(weights, updates, strengths, strict=True)
        ]
        yield weights
