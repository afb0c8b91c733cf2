"""The factor ``1 / (1 + c |w|^(p-2))`` of p-norm weight decay (P2), for uncompiled and for compiled code.

With a ridge, the elastic p-norm, it is ``1 / (1 + ridge + c |w|^(p-2))``.

``shrink_factors`` computes the factors of a list of tensors by uncompiled operations on the whole list.
``shrink_factor`` is one expression that a compiler turns into one loop. In compiled float32 loops on the CPU, ``power``
replaces a logarithm and an exponential by polynomials.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wdlab.tensors import accumulation_dtype, add_number_, compiled, scale_

MAX_COEFFICIENT = 1e37  # a larger c counts as 1e37, a c below 1e-37 as 0; else products of 0 and infinity would be NaN
MAX_EXPONENT = 1e6  # of `power`; the logarithm of a larger power might not fit into int32


def shrink_factors(
    weights: Sequence[Tensor],
    c: float | Tensor,
    p: float,
    places: Sequence[Tensor] | None = None,
    ridge: float | Tensor = 0.0,
) -> list[Tensor] | Tensor | float:
    """Return ``1 / (1 + ridge + c |w|^(p-2))`` for each weight, in [0, 1]. No intermediate result overflows.

    Args:
        weights: tensors of any shapes.
        c: ``p * lr * s`` >= 0: a number, a scalar tensor, or for a stack a number per run, (runs, 1, 1). If it is 0,
            every factor is ``1 / (1 + ridge)``.
        p: the exponent, > 0.
        places: tensors to write the factors to, in the shapes of the weights, at least float32; None for new tensors.
        ridge: learning rate times the strength of the squared L2 norm, >= 0, in a form that ``c`` may have.

    Returns:
        Tensors in the shapes of the weights, at least float32. If p = 2, or if ``c`` is a number below 1e-37: one
        factor for all weights, in the form of ``c`` or ``ridge``.
    """
    if isinstance(ridge, Tensor) or ridge > 0:
        factors = shrink_factors(weights, _within_ridge(c, ridge), p, places)
        if not isinstance(factors, list):
            return factors / (1 + ridge)
        scale_(factors, 1 / (1 + ridge))
        return factors
    if p == 2 or (not isinstance(c, Tensor) and c < 1 / MAX_COEFFICIENT):
        return 1 / (1 + c)
    if places is None:
        sizes = [x.to(accumulation_dtype(x.dtype)) for x in torch._foreach_abs(weights)]
    else:
        sizes = [
            torch.abs(w if w.dtype == x.dtype else w.to(x.dtype), out=x) for w, x in zip(weights, places, strict=True)
        ]
    if p in (0.5, 1, 1.5):
        if p == 1:
            torch._foreach_reciprocal_(sizes)
        else:
            torch._foreach_rsqrt_(sizes)
        if p == 0.5:
            torch._foreach_pow_(sizes, 3)
        scale_(sizes, c if isinstance(c, Tensor) else min(c, MAX_COEFFICIENT))
        torch._foreach_add_(sizes, 1)
        torch._foreach_reciprocal_(sizes)
    elif places is not None:  # by the equal form 1 / (1 + exp(log c - (2-p) log |w|))
        offset = -_log(c)
        offset = offset if isinstance(offset, Tensor) else torch.tensor(offset, dtype=torch.float64)
        for x in sizes:  # one tensor after the other stays in the cache, and `add` multiplies in the same pass
            torch.add(offset, x.log2_(), alpha=(2 - p) * math.log(2), out=x).sigmoid_()  # log_ can take twice as long
    else:
        torch._foreach_log_(sizes)
        torch._foreach_mul_(sizes, 2 - p)
        add_number_(sizes, -_log(c))
        torch._foreach_sigmoid_(sizes)
    return [torch.where(c > 1 / MAX_COEFFICIENT, x, 1) for x in sizes] if isinstance(c, Tensor) else sizes


def _within_ridge(c: float | Tensor, ridge: float | Tensor) -> float | Tensor:
    """Return ``c / (1 + ridge)``: the factor with a ridge is that of this ``c`` without one, over ``1 + ridge``."""
    return (c.clamp(max=MAX_COEFFICIENT) if isinstance(c, Tensor) else c) / (1 + ridge)


def _log(c: float | Tensor) -> float | Tensor:
    return (
        c.clamp(1 / MAX_COEFFICIENT, MAX_COEFFICIENT).log()
        if isinstance(c, Tensor)
        else math.log(min(c, MAX_COEFFICIENT))
    )


def compiled_shrink_factors(
    weights: Sequence[Tensor], c: float | Tensor, p: float, ridge: float | Tensor = 0.0
) -> list[Tensor]:
    """Return the result of ``shrink_factors`` as a list of tensors, by ``torch.compile`` in one pass over each tensor.

    Args:
        weights: tensors of any shapes.
        c: ``p * lr * s`` >= 0, a number or a scalar tensor.
        p: the exponent, > 0.
        ridge: learning rate times the strength of the squared L2 norm, >= 0, a number or a scalar tensor.
    """
    kept = None
    if isinstance(ridge, Tensor) or ridge > 0:
        c, kept = _within_ridge(c, ridge), 1 / (1 + ridge)
        kept = kept if isinstance(kept, Tensor) else torch.tensor(kept, dtype=torch.float64)
    c = c if isinstance(c, Tensor) else torch.tensor(min(c, MAX_COEFFICIENT), dtype=torch.float64)
    return compiled(_all_shrink_factors)(list(weights), c, p, kept)


def _all_shrink_factors(weights: list[Tensor], c: Tensor, p: float, kept: Tensor | None) -> list[Tensor]:
    within = c.clamp(1 / MAX_COEFFICIENT, MAX_COEFFICIENT)
    factors = [torch.where(c > 1 / MAX_COEFFICIENT, shrink_factor(w, within, p), 1.0) for w in weights]
    return factors if kept is None else [x * kept for x in factors]


def shrink_factor(w: Tensor, c: Tensor, p: float) -> Tensor:
    """Return ``1 / (1 + c |w|^(p-2))`` as one expression, which a compiler can fuse into a loop.

    Args:
        w: weights.
        c: a scalar tensor in [1e-37, 1e37].
        p: the exponent, > 0.

    Returns:
        The factors in the shape of ``w``, at least float32 (for p = 2 in the type of ``c``).
    """
    if p == 2:
        return (1 / (1 + c)).expand(w.shape)
    x = w.to(accumulation_dtype(w.dtype)).abs()
    if p > 2:
        return 1 / (1 + c * power(x, p - 2))
    if p == 0.5:
        x = x * x.sqrt()
    elif p == 1.5:
        x = x.sqrt()
    elif p != 1:
        x = power(x, 2 - p)
        if _by_polynomials(x):
            return x / (x + c)  # without a limit on x, since the sum is finite
    largest = torch.finfo(x.dtype).max / 2
    x = torch.where(x < largest, x, largest)  # a compiled `clamp` takes longer, since it keeps NaN
    return x / (x + c)


# coefficients of Chebyshev fits of log2(1 + r) / r on [-1/4, 1/2) and 2^f on [-1/2, 1/2], in the order of rising
# powers; the errors of the fits are below float32's rounding
LOG2_POLYNOMIAL = (
    1.44269525,
    -0.721350693,
    0.48084751,
    -0.360335294,
    0.290073565,
    -0.250652196,
    0.204127339,
    -0.09616397,
)
EXP2_POLYNOMIAL = (1.00000008, 0.693147207, 0.240221074, 0.0555032721, 0.0096760371, 0.00134004322)


def power(x: Tensor, q: float) -> Tensor:
    """Return ``x^q`` for ``x >= 0`` and ``q > 0``.

    A float32 tensor on the CPU is computed from its bits and two polynomials, as accurately as ``exp(q log x)``. In a
    compiled loop this takes half the time of ``exp(q log x)``; uncompiled it is slower.
    """
    if not _by_polynomials(x):
        return torch.exp(q * torch.log(x))
    bits = x.view(torch.int32)
    exponent = (bits - 0x3F400000) >> 23
    rest = (bits - (exponent << 23)).view(torch.float32) - 1  # x = 2^exponent (1 + rest), rest in [-1/4, 1/2)
    log2 = min(q, MAX_EXPONENT) * (exponent + rest * _polynomial(LOG2_POLYNOMIAL, rest))
    whole = torch.floor(log2 + 0.5)
    biased = (whole.to(torch.int32) + 127).clamp(0, 254)  # of integers: a clamp of floats takes a fifth of the step
    result = _polynomial(EXP2_POLYNOMIAL, log2 - whole) * (biased << 23).view(torch.float32)
    return result if q >= 1 else torch.where(x > 0, result, 0.0)  # for q >= 1 the biased exponent of 0 is 0


def _by_polynomials(x: Tensor) -> bool:
    """Return True if ``power`` computes ``x^q`` by polynomials; the result is then below 2.5e38."""
    return x.dtype == torch.float32 and x.is_cpu


def _polynomial(coefficients: Sequence[float | Tensor], x: Tensor) -> Tensor:
    """Evaluate a polynomial at ``x`` by Estrin's scheme, which takes half the time of Horner's.

    Args:
        coefficients: in the order of rising powers.
        x: any shape; the result has the same shape.
    """
    pairs = [a + b * x for a, b in itertools.zip_longest(coefficients[::2], coefficients[1::2], fillvalue=0.0)]
    return pairs[0] if len(pairs) == 1 else _polynomial(pairs, x * x)
