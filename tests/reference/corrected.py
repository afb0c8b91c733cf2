"""AdamC and SGDC: Defazio 2025, arXiv 2506.02285. Independent decay: Loshchilov and Hutter 2019, arXiv 1711.05101::

w <- w - s * (lr^2 / largest lr) * w   of normalized layers,   w - s * lr * w   of the others       (AdamC, SGDC)
w <- w - s * (lr / largest lr) * w                                                                  (independent)

then the optimizer's step on the loss gradient alone.
"""

from collections.abc import Sequence

from tests.reference.base import SGD, Adam, Gradients, Steps, Tensors


def corrected(
    weights: Tensors,
    gradients: Gradients,
    lrs: Sequence[float],
    strengths: Sequence[float],
    normalized: Sequence[bool],
    base: type[Adam | SGD] = Adam,
    **settings,
) -> Steps:
    """Yield the weights after each step of AdamC or SGDC; ``normalized`` says which tensors are corrected."""
    optimizers = [base(**settings) for _ in weights]
    for gradient, lr in zip(gradients, lrs, strict=True):
        rates = [lr**2 / max(lrs) if is_normalized else lr for is_normalized in normalized]
        decayed = [w - s * rate * w for w, s, rate in zip(weights, strengths, rates, strict=True)]
        weights = [w - lr * o.direction(g) for w, o, g in zip(decayed, optimizers, gradient, strict=True)]
        yield weights


def independent(
    weights: Tensors,
    gradients: Gradients,
    lrs: Sequence[float],
    strengths: Sequence[float],
    base: type[Adam | SGD] = Adam,
    **settings,
) -> Steps:
    """Yield the weights after each step of an optimizer with independent decay."""
    optimizers = [base(**settings) for _ in weights]
    for gradient, lr in zip(gradients, lrs, strict=True):
        decayed = [w - s * lr / max(lrs) * w for w, s in zip(weights, strengths, strict=True)]
        weights = [w - lr * o.direction(g) for w, o, g in zip(decayed, optimizers, gradient, strict=True)]
        yield weights
