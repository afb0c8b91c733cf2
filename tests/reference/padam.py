"""pAdam and p-norm weight decay: Outmezguine and Levi 2024, arXiv 2404.10824 (P2).

The Bridge penalty ``sum |w|^p`` in a decoupled, proximal form. With ``w0`` a weight before the step and ``u`` after the
step of the optimizer::

    w = u / (1 + p lr s |w0|^(p-2)) = u X / (X + p lr s),          X = |w0|^(2-p)

The late variant has ``u`` in place of ``w0``. The elastic p-norm adds ``r |w|^2 / 2`` to the penalty::

    w = u X / (X (1 + lr r) + p lr s)

pAdam decays tensors of two or more dimensions and no others.
"""

from collections.abc import Sequence

import torch

from tests.reference.base import SGD, Adam, Gradients, Steps, Tensors


def decayed(u: float, w0: float, p: float, c: float, c2: float = 0.0) -> float:
    """Return one weight after the decay, for ``c = p lr s`` and ``c2 = lr r``."""
    if c == 0:
        return u / (1 + c2)
    if p >= 2:  # the same where X may be infinite
        return u / (1 + c2 + c * abs(w0) ** (p - 2))
    x = abs(w0) ** (2 - p)
    return u * x / (x * (1 + c2) + c)


def pnorm_decay(
    weights: Tensors,
    gradients: Gradients,
    lrs: Sequence[float],
    strengths: Sequence[float],
    p: float = 0.8,
    late: bool = False,
    ridge: float = 0.0,
    base: type[Adam | SGD] = SGD,
    **settings,
) -> Steps:
    """Yield the weights after each step of an optimizer with p-norm weight decay."""
    optimizers = [base(**settings) for _ in weights]
    for gradient, lr in zip(gradients, lrs, strict=True):
        new = []
        for w, g, s, optimizer in zip(weights, gradient, strengths, optimizers, strict=True):
            u = w - lr * optimizer.direction(g)
            pairs = zip(u.flatten().tolist(), (u if late else w).flatten().tolist(), strict=True)
            values = [decayed(ui, wi, p, p * lr * s, lr * ridge) for ui, wi in pairs]
            new.append(torch.tensor(values).reshape(w.shape))
        weights = new
        yield weights


def padam(
    weights: Tensors, gradients: Gradients, lrs: Sequence[float], strengths: Sequence[float], p: float, **settings
) -> Steps:
    """Yield the weights after each step of pAdam."""
    strengths = [s if w.dim() >= 2 else 0.0 for w, s in zip(weights, strengths, strict=True)]
    return pnorm_decay(weights, gradients, lrs, strengths, p, base=Adam, **settings)
