"""The exact proximal step on ``sum |w|^p`` for p >= 1, by its definition (comparators of P2, arXiv 2404.10824).

With ``u`` a weight after the optimizer's step and ``t = lr * s``::

    w = argmin over z of (z - u)^2 / 2 + t |z|^p

which has the sign of ``u`` and is found by halving an interval: ``z - |u| + t p z^(p-1)`` grows with ``z``.
"""

from collections.abc import Sequence

from tests.reference.base import SGD, Adam, Gradients, Steps, Tensors, changed_one_by_one

HALVINGS = 200  # far more than float64 has bits: small weights are as exact as large ones


def prox(u: float, t: float, p: float) -> float:
    """Return one weight after the proximal step."""
    low, high = 0.0, abs(u)
    for _ in range(HALVINGS):
        z = (low + high) / 2
        low, high = (low, z) if z - abs(u) + t * p * z ** (p - 1) > 0 else (z, high)
    return low if u >= 0 else -low


def proximal(
    weights: Tensors,
    gradients: Gradients,
    lrs: Sequence[float],
    strengths: Sequence[float],
    p: float,
    base: type[Adam | SGD] = SGD,
    **settings,
) -> Steps:
    """Yield the weights after each step of an optimizer with a proximal step after its own."""
    return changed_one_by_one(lambda u, t: prox(u, t, p), weights, gradients, lrs, strengths, base, settings)
