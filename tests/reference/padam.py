"""pAdam and p-norm weight decay: Outmezguine and Levi 2024, arXiv 2404.10824 (P2).

The Bridge penalty ``sum |w|^p`` in a decoupled, proximal form. With ``w0`` a weight before the step and ``u`` after the
step of the optimizer::

    w = u / (1 + p lr s |w0|^(p-2)) = u X / (X + p lr s),          X = |w0|^(2-p)

The late variant has ``u`` in place of ``w0``. pAdam decays tensors of two or more dimensions and no others.
"""

from collections.abc import Sequence

import torch

from tests.reference.base import SGD, Adam, Gradients, Steps, Tensors


def decayed(u: float, w0: float, p: float, c: float) -> float:
    """Return one weight after the decay, for ``c = p lr s``."""
    if c == 0:
        return u
    if p >= 2:  # the same where X may be infinite
        return u / (1 + c * abs(w0) ** (p - 2))
    x = abs(w0) ** (2 - p)
    return u * x / (x + c)


def pnorm_decay(
    weights: Tensors,
    gradients: Gradients,
    lrs: Sequence[float],
    strengths: Sequence[float],
    p: float = 0.8,
    late: bool = False,
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
            new.append(torch.tensor([decayed(ui, wi, p, p * lr * s) for ui, wi in pairs]).reshape(w.shape))
        weights = new
        yield weights


def padam(
    weights: Tensors, gradients: Gradients, lrs: Sequence[float], strengths: Sequence[float], p: float, **settings
) -> Steps:
    """Yield the weights after each step of pAdam."""
    strengths = [s if w.dim() >= 2 else 0.0 for w, s in zip(weights, strengths, strict=True)]
    return pnorm_decay(weights, gradients, lrs, strengths, p, base=Adam, **settings)
