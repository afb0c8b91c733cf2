"""Constrained parameter regularization: Franke et al., NeurIPS 2024, arXiv 2311.09058, as released in ``pytorch-cpr``.

Per tensor of n elements, with ``u`` the weights after the optimizer's step ``t`` and mu the strength::

    lambda <- max(0, lambda + (mu / n) (|u|^2 - kappa))          once kappa is set
    w      <- u - 2 lambda u

``kappa`` is ``|u|^2`` after step ``warm_start``, or at an inflection of ``|u|``. For that an average of ``|u|``, with a
decay of 1 - 2 / every from step ``every`` on, is sampled at every multiple of ``every`` above it. From the third sample
on, kappa is set where the relative growth since the last sample is above 1 % and below the relative growth before.
"""

from collections.abc import Sequence

from torch import Tensor

from tests.reference.base import SGD, Adam, Gradients, Steps, Tensors


class Constraint:
    """The multiplier and the bound of one tensor."""

    def __init__(self, mu: float, warm_start: int = 0, every: int = 0) -> None:
        self.mu, self.warm_start, self.every = mu, warm_start, every
        self.step, self.multiplier, self.kappa = 0, 0.0, None
        self.average, self.last, self.growth = 0.0, 0.0, 0.0

    def decayed(self, u: Tensor) -> Tensor:
        """Take in the weights after a step of the optimizer and return them decayed."""
        self.step += 1
        square = float((u**2).sum())
        if self.mu > 0 and self.kappa is not None:
            self.multiplier = max(0.0, self.multiplier + self.mu / u.numel() * (square - self.kappa))
            return u - 2 * self.multiplier * u
        if self.warm_start == self.step or (self.every and self.inflection(square**0.5)):
            self.kappa = square
        return u

    def inflection(self, norm: float) -> bool:
        """Take in the norm after a step; return True if its growth slows down."""
        k = 2 / self.every
        self.average = norm if self.step < self.every else (1 - k) * self.average + k * norm
        if self.step % self.every or self.step == self.every:
            return False
        before, self.growth = self.growth, (self.average - self.last) / self.average
        self.last = self.average
        return self.step > 3 * self.every and before > self.growth > 0.01


def constrained(
    weights: Tensors,
    gradients: Gradients,
    lrs: Sequence[float],
    strengths: Sequence[float],
    base: type[Adam | SGD] = Adam,
    warm_start: int = 0,
    every: int = 0,
    **settings,
) -> Steps:
    """Yield the weights after each step of an optimizer with constrained parameter regularization."""
    optimizers = [base(**settings) for _ in weights]
    constraints = [Constraint(s, warm_start, every) for s in strengths]
    for gradient, lr in zip(gradients, lrs, strict=True):
        after = [w - lr * o.direction(g) for w, o, g in zip(weights, optimizers, gradient, strict=True)]
        weights = [constraint.decayed(u) for constraint, u in zip(constraints, after, strict=True)]
        yield weights
