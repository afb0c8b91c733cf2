"""PathProx: Yang et al. 2022, arXiv 2210.03069 (P1), the algorithm with layer-wise balance.

For a network of layer pairs ``(W, b), (V, c)`` whose unit i has input weights ``W[i]`` and output weights ``V[:, i]``:

1. an SGD step on the loss, in which only the layers outside the pairs have ``s/2 |W|^2``;
2. balance: the path-norms ``P = sum_i |W[i]| |V[:, i]|`` of all pairs become their geometric mean ``G``;
3. normalize: ``|W[i]| = 1``, the bias ``b[i]`` divided by the same norm;
4. prox: ``V[:, i]`` becomes ``max(0, 1 - t / |V[:, i]|) V[:, i]`` with ``t = lr * s``.
"""

import math
from collections.abc import Sequence

from tests.reference.base import Gradients, Steps, Tensors


def pathprox(
    weights: Tensors,
    gradients: Gradients,
    lrs: Sequence[float],
    strengths: Sequence[float],
    balance: bool = True,
    regularize_bias: bool = False,
) -> Steps:
    """Yield the weights after each step of PathProx.

    ``weights`` are ``W, b, V, c`` of every pair, then weight and bias of one layer outside the pairs. There is one
    strength. With ``regularize_bias`` a unit's bias counts to its input weights, and nothing is balanced.
    """
    s = strengths[0]
    for gradient, lr in zip(gradients, lrs, strict=True):
        *gs, g_other, g_bias = gradient
        *ws, other, bias = weights
        ws = [w - lr * g for w, g in zip(ws, gs, strict=True)]
        other, bias = other - lr * (g_other + s * other), bias - lr * g_bias
        pairs = [ws[k : k + 4] for k in range(0, len(ws), 4)]
        if balance and not regularize_bias:
            balance_(pairs)
        for w, b, v, _ in pairs:
            for i in range(len(w)):
                norm = math.sqrt(float((w[i] ** 2).sum()) + (float(b[i] ** 2) if regularize_bias else 0.0))
                w[i], b[i] = w[i] / norm, b[i] / norm
                length = float(v[:, i].norm())
                v[:, i] = 0.0 if length <= lr * s else v[:, i] - lr * s * v[:, i] / length
        weights = [*(t for pair in pairs for t in pair), other, bias]
        yield [t.clone() for t in weights]


def balance_(pairs: Sequence[Tensors]) -> None:
    """Give all pairs the same path-norm, in order from the input on. The function of the network stays the same.

    A pair's output is multiplied by a factor, and the next pair undoes it: its hidden units are multiplied by the
    factor too, by their bias, and its output weights are divided by it, which changes its own path-norm.
    """
    norms = [sum(float(w[i].norm() * v[:, i].norm()) for i in range(len(w))) for w, _, v, _ in pairs]
    mean = math.prod(norms) ** (1 / len(norms))
    before = 1.0
    for (_, b, v, c), norm in zip(pairs, norms, strict=True):
        b *= before
        v /= before
        factor = mean / (norm / before)
        v *= factor
        c *= factor
        before = factor
