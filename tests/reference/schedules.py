"""Strengths that change over time, each a factor for the step to come.

By the clock: only at first or only later (Bjorck et al. 2020, arXiv 2012.13841, P4; delayed: Park et al. 2018, P3), or
growing. By the gradients: the coherence gate (Park et al. 2018, arXiv 1811.08056, P3; the three statistics are our
readings) and the scale of the gradients (Xie et al. 2020/2023, arXiv 2011.11152, P5).

A factor is a function of the number of steps made, the loss gradient ``g`` and the penalty gradient at full strength
``r``, both lists with one tensor for each tensor of weights.
"""

import math
from collections.abc import Callable, Sequence

import torch

from tests.reference.base import Adam, Tensors

Factor = Callable[[int, Tensors, Tensors], float]


def constant(step: int, g: Tensors, r: Tensors) -> float:
    """Return 1 in every step."""
    return 1.0


def early(length: float) -> Factor:
    """The full strength in the first ``length`` steps, then none (P4)."""
    return lambda step, g, r: 1.0 if step < length else 0.0


def late(length: float) -> Factor:
    """No strength in the first ``length`` steps, then the full one (late in P4, delayed in P3)."""
    return lambda step, g, r: 0.0 if step < length else 1.0


def warm_up(length: float) -> Factor:
    """A strength that grows in equal parts over ``length`` steps and is full in the next one."""
    return lambda step, g, r: min(1.0, (step + 1) / (length + 1))


def product(*factors: Factor) -> Factor:
    """The product of several factors."""
    return lambda step, g, r: math.prod([factor(step, g, r) for factor in factors])


def dot(a: Tensors, b: Tensors) -> float:
    """Return the scalar product of two lists of tensors, each as one long vector."""
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


def cosine(a: Tensors, b: Tensors) -> float:
    """Return the cosine between two lists of tensors; 0 if one of them is 0."""
    norms = math.sqrt(dot(a, a)) * math.sqrt(dot(b, b))
    return dot(a, b) / norms if norms > 0 else 0.0


class Gate:
    """A factor of 1 in steps whose statistic is at least ``threshold``, of 0 in the others (P3).

    The statistics are ``running_mean``, the cosine between ``g`` and the exponential mean of the earlier ``g``;
    ``total_gradient``, the cosine between ``g`` and ``g + r``; ``norm_ratio``, ``|g| / |r|``.
    """

    def __init__(self, coherence: str, threshold: float, momentum: float = 0.9) -> None:
        self.coherence, self.threshold, self.momentum = coherence, threshold, momentum
        self.mean: Tensors | None = None

    def __call__(self, step: int, g: Tensors, r: Tensors) -> float:
        """Return the factor of this step, and take ``g`` into the mean."""
        mean = self.mean or [torch.zeros_like(x) for x in g]
        self.mean = [self.momentum * m + (1 - self.momentum) * x for m, x in zip(mean, g, strict=True)]
        if self.coherence == "running_mean":
            statistic = cosine(g, mean)
        elif self.coherence == "total_gradient":
            statistic = cosine(g, [x + y for x, y in zip(g, r, strict=True)])
        else:
            statistic = math.sqrt(dot(g, g)) / math.sqrt(dot(r, r))
        return 1.0 if statistic >= self.threshold else 0.0


class GradientScale:
    """The factor ``1 / sqrt(V)``, with ``V`` the mean of all of Adam's bias-corrected second moments of ``g`` (P5)."""

    def __init__(self, **settings) -> None:
        self.settings = settings
        self.adams: Sequence[Adam] = ()

    def __call__(self, step: int, g: Tensors, r: Tensors) -> float:
        """Return the factor of this step, and take ``g`` into the second moment."""
        self.adams = self.adams or [Adam(**self.settings) for _ in g]
        for adam, x in zip(self.adams, g, strict=True):
            adam.direction(x)
        return 1 / math.sqrt(float(torch.cat([adam.second_moment().flatten() for adam in self.adams]).mean()))
