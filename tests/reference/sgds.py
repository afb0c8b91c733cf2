"""SGDS, SGD with scheduled weight decay: Xie et al. 2020/2023, arXiv 2011.11152 (P5), the algorithm of SGDS.

SGD with momentum moves by ``lr (1 - dampening) / (1 - momentum)`` in the end for one unit of gradient. The decay takes
that as its learning rate::

    w <- w - lr * s (1 - dampening) / (1 - momentum) * w          then          SGD's step
"""

from collections.abc import Sequence

from tests.reference.base import SGD, Gradients, Steps, Tensors


def sgds(
    weights: Tensors,
    gradients: Gradients,
    lrs: Sequence[float],
    strengths: Sequence[float],
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> Steps:
    """Yield the weights after each step of SGDS."""
    sgds = [SGD(momentum, dampening, nesterov) for _ in weights]
    for gradient, lr in zip(gradients, lrs, strict=True):
        whole = lr * (1 - dampening) / (1 - momentum)
        decayed = [w * max(0.0, 1 - whole * s) for w, s in zip(weights, strengths, strict=True)]
        weights = [w - lr * sgd.direction(g) for w, sgd, g in zip(decayed, sgds, gradient, strict=True)]
        yield weights
