"""AdamS, Adam with scheduled weight decay: Xie et al. 2020/2023, arXiv 2011.11152 (P5), the algorithm of AdamS.

``V`` is the mean of all elements of all bias-corrected second moments, one number for the whole network::

    w <- w - lr * s / sqrt(V) * w          then         w <- w - lr * m / (sqrt(v) + eps)

With AMSGrad both use the largest second moment so far. The factor of a huge ``lr * s / sqrt(V)`` is 0, not negative.
"""

import math
from collections.abc import Sequence

from tests.reference.base import Adam, Gradients, Steps, Tensors


def adams(
    weights: Tensors, gradients: Gradients, lrs: Sequence[float], strengths: Sequence[float], **settings
) -> Steps:
    """Yield the weights after each step of AdamS."""
    adams = [Adam(**settings) for _ in weights]
    for gradient, lr in zip(gradients, lrs, strict=True):
        directions = [adam.direction(g) for adam, g in zip(adams, gradient, strict=True)]
        elements = [element for adam in adams for element in adam.second_moment().flatten().tolist()]
        v = sum(elements) / len(elements)
        decayed = [w * max(0.0, 1 - lr * s / math.sqrt(v)) for w, s in zip(weights, strengths, strict=True)]
        weights = [w - lr * d for w, d in zip(decayed, directions, strict=True)]
        yield weights
