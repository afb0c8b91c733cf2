"""p-norm weight decay (P2): decoupled decay for the Bridge penalty with any p > 0, and its comparators.

Outmezguine and Levi 2024, arXiv 2404.10824.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from wdlab.foreach import add_number, add_number_, compiled, local, times_, wide
from wdlab.regularizers.base import Part, Regularizer
from wdlab.regularizers.checks import as_number, check_number
from wdlab.regularizers.over_time import OverTime
from wdlab.regularizers.penalties import Bridge

LARGEST = 1e37  # c beyond it is taken for it, c below its inverse for 0, so that no infinity or zero meets another


class _Bridged(Regularizer):
    """A method on ``R(w) = sum |w|^p``, with a ``p`` for each group."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        strength: float,
        p: float,
        over_time: OverTime | Iterable[OverTime] | None,
    ) -> None:
        self.default_p = self.check_p(p)
        super().__init__(params, strength, over_time)

    def check_p(self, p: float) -> float:
        """``p`` if the method can have it, else a ValueError."""
        return check_number("p", p, above=0.0)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """As for every method; ``p`` too may be given."""
        super().add_param_group({**group, "p": self.check_p(group.get("p", self.default_p))})

    def penalty(self) -> Tensor:
        return sum((Bridge(g["p"]).value(g["params"]) * g["strength"] for g in self.groups), super().penalty())

    def penalty_gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        powers = {id(w): group["p"] for group in self.groups for w in group["params"]}
        return [Bridge(powers[id(w)]).gradient([w])[0] for w in params]


class PNormDecay(_Bridged):
    """p-norm weight decay, pWD: ``R(w) = sum |w|^p`` for any p > 0.  [grade A: released pAdam, step by step]

    With ``w0`` the weight before the optimizer's step and ``u`` behind it, ``w = u / (1 + p lr s |w0|^(p-2))``. For p
    < 2 a weight that is zero stays exactly zero; for p <= 1 small weights get there in a few steps, without the
    gradient that diverges at 0 for p < 1. p = 2 is decoupled decay with the factor ``1 / (1 + 2 lr s)``. The learning
    rate multiplies the decay. Decays every parameter it is given (pAdam: tensors with at least 2 dimensions);
    ``for_model`` gives it the weights of linear, convolution and embedding layers unless ``scope`` is ``all``.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
        p: > 0; a group may have its own, ``{"params": ..., "p": 1.0}``.
        late: use ``u`` in the factor instead of ``w0``, the released late variant.
        compiled: do the arithmetic by ``torch.compile``, in one pass over memory (needs a C++ compiler on the CPU).

    Raises:
        ValueError: for a bad p or strength.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        strength: float,
        p: float = 0.8,
        late: bool = False,
        compiled: bool = False,
        over_time: OverTime | Iterable[OverTime] | None = None,
    ) -> None:
        self.late, self.compiled = late, compiled
        self._factors: list[tuple[list[Tensor], list[Tensor] | Tensor | float]] = []
        self._scratch: dict[int, Tensor] = {}  # where a CPU weight's factors are written: a new place takes longer
        super().__init__(params, strength, p, over_time)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_factors": [], "_scratch": {}}

    def before_step(self) -> None:
        if not self.late:
            self._factors = [(part.params, self._remaining(part)) for part in self.parts()]

    def after_step(self) -> None:
        if self.late:
            self._factors = [(part.params, self._remaining(part)) for part in self.parts()]
        for params, factors in self._factors:
            if isinstance(factors, list):
                torch._foreach_mul_(local(params), factors)
            else:
                times_(local(params), factors)
        self._factors = []

    def _remaining(self, part: Part) -> list[Tensor] | Tensor | float:
        p, c = part.group["p"], part.group["p"] * part.lr * part.strength
        weights = local(part.params)
        if self.compiled:
            return compiled_remaining_factors(weights, c, p)
        return remaining_factors(weights, c, p, self._places(part.params, weights))

    def _places(self, params: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor] | None:
        if not all(w.is_cpu for w in weights):
            return None
        for p, w in zip(params, weights, strict=True):
            place = self._scratch.get(id(p))
            if place is None or place.shape != w.shape or place.dtype != wide(w.dtype):
                self._scratch[id(p)] = torch.empty_like(w, dtype=wide(w.dtype))
        return [self._scratch[id(p)] for p in params]


def remaining_factors(
    weights: Sequence[Tensor], c: float | Tensor, p: float, places: Sequence[Tensor] | None = None
) -> list[Tensor] | Tensor | float:
    """``1 / (1 + c |w|^(p-2))``, in [0, 1], without an overflow on the way. 1 where ``c`` is 0.

    Args:
        weights: any shapes.
        c: ``p * lr * s`` >= 0, a number or a scalar tensor.
        p: > 0.
        places: tensors to write to, in the shapes of the weights, at least float32; new ones if not given.

    Returns:
        Tensors in the shapes of the weights, at least float32; for p = 2 one factor for all of them.
    """
    if p == 2 or (not isinstance(c, Tensor) and c < 1 / LARGEST):
        return 1 / (1 + c)
    if places is None:
        sizes = [x.to(wide(x.dtype)) for x in torch._foreach_abs(weights)]
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
        times_(sizes, c if isinstance(c, Tensor) else min(c, LARGEST))
        torch._foreach_add_(sizes, 1)
        torch._foreach_reciprocal_(sizes)
    else:  # the same as 1 / (1 + exp(log c - (2-p) log |w|))
        torch._foreach_log_(sizes)
        torch._foreach_mul_(sizes, 2 - p)
        add_number_(sizes, -_log(c))
        torch._foreach_sigmoid_(sizes)
    return [torch.where(c > 1 / LARGEST, x, 1) for x in sizes] if isinstance(c, Tensor) else sizes


def _log(c: float | Tensor) -> float | Tensor:
    return c.clamp(1 / LARGEST, LARGEST).log() if isinstance(c, Tensor) else math.log(min(c, LARGEST))


def compiled_remaining_factors(weights: Sequence[Tensor], c: float | Tensor, p: float) -> list[Tensor]:
    """``remaining_factors`` by ``torch.compile``, one pass over each tensor."""
    c = c if isinstance(c, Tensor) else torch.tensor(min(c, LARGEST), dtype=torch.float64)
    return compiled(_all_remaining)(list(weights), c, p)


def _all_remaining(weights: list[Tensor], c: Tensor, p: float) -> list[Tensor]:
    within = c.clamp(1 / LARGEST, LARGEST)
    return [torch.where(c > 1 / LARGEST, remaining_factor(w, within, p), 1.0) for w in weights]


def remaining_factor(w: Tensor, c: Tensor, p: float) -> Tensor:
    """``1 / (1 + c |w|^(p-2))`` for c > 0, in one expression, for a compiler to make part of a loop."""
    if p == 2:
        return (1 / (1 + c)).expand(w.shape)
    x = w.to(wide(w.dtype)).abs()
    if p > 2:
        return 1 / (1 + c * power(x, p - 2))
    if p == 0.5:
        x = x * x.sqrt()
    elif p == 1.5:
        x = x.sqrt()
    elif p != 1:
        x = power(x, 2 - p)
    x = x.clamp(max=torch.finfo(x.dtype).max / 4)
    return x / (x + c)


# log2(1 + r) / r on [-1/4, 1/2) and 2^f on [-1/2, 1/2], Chebyshev fits; the errors are below float32's
LOG2 = (1.44269525, -0.721350693, 0.48084751, -0.360335294, 0.290073565, -0.250652196, 0.204127339, -0.09616397)
EXP2 = (1.00000008, 0.693147207, 0.240221074, 0.0555032721, 0.0096760371, 0.00134004322)


def power(x: Tensor, q: float) -> Tensor:
    """``x^q`` for ``x >= 0`` and ``q > 0``.

    For float32 on the CPU from the bits of ``x`` and two polynomials, as accurate as ``exp(q log x)``: in a compiled
    loop half the cost of calling a logarithm and an exponential; uncompiled it is slow.
    """
    if x.dtype != torch.float32 or not x.is_cpu:
        return torch.exp(q * torch.log(x))
    bits = x.view(torch.int32)
    exponent = (bits - 0x3F400000) >> 23
    rest = (bits - (exponent << 23)).view(torch.float32) - 1  # x = 2^exponent (1 + rest), rest in [-1/4, 1/2)
    log2 = (q * (exponent + rest * _polynomial(LOG2, rest))).clamp(-126, 127)
    whole = torch.floor(log2 + 0.5)
    found = _polynomial(EXP2, log2 - whole) * ((whole.to(torch.int32) + 127) << 23).view(torch.float32)
    return torch.where(x > 0, found, 0.0)


def _polynomial(coefficients: Sequence[float | Tensor], x: Tensor) -> Tensor:
    """By halves (Estrin), since one term waiting for the other (Horner) would take twice the time."""
    pairs = [a + b * x for a, b in itertools.zip_longest(coefficients[::2], coefficients[1::2], fillvalue=0.0)]
    return pairs[0] if len(pairs) == 1 else _polynomial(pairs, x * x)


class PNormProx(_Bridged):
    """The exact proximal step on ``R(w) = sum |w|^p`` for p = 1 and p = 3/2, the released comparators of P2.  [grade B]

    Behind the optimizer's step, ``w = argmin_z (z - u)^2 / 2 + t |z|^p`` with ``t = lr * s``: for p = 1 the soft
    threshold ``sign(u) max(0, |u| - t)``, for p = 3/2 ``sign(u) (2 |u| / (1.5 t + sqrt(2.25 t^2 + 4 |u|)))^2``. The
    learning rate multiplies the decay. Decays every parameter it is given; ``for_model`` gives it the weights of
    linear, convolution and embedding layers unless ``scope`` is ``all``.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
        p: 1 or 1.5; a group may have its own.

    Raises:
        ValueError: for another p.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        strength: float,
        p: float = 1.0,
        over_time: OverTime | Iterable[OverTime] | None = None,
    ) -> None:
        super().__init__(params, strength, p, over_time)

    def check_p(self, p: float) -> float:
        number = as_number(p)
        if number not in (1, 1.5):
            raise ValueError(f"p={p}: must be 1 or 1.5 for the exact prox; PNormDecay takes any p > 0")
        return number

    def after_step(self) -> None:
        for part in self.parts():
            threshold, weights = part.lr * part.strength, local(part.params)
            if isinstance(threshold, Tensor) or threshold > 0:
                proxes = (soft_threshold if part.group["p"] == 1 else prox_of_three_halves)(weights, threshold)
                if isinstance(threshold, Tensor):
                    proxes = [torch.where(threshold > 0, new, w) for new, w in zip(proxes, weights, strict=True)]
                torch._foreach_copy_(weights, proxes)


def soft_threshold(weights: Sequence[Tensor], threshold: float | Tensor) -> list[Tensor]:
    """``sign(w) max(0, |w| - t)``, the prox of ``t |w|``."""
    sizes = torch._foreach_abs(weights)
    add_number_(sizes, -threshold)
    torch._foreach_clamp_min_(sizes, 0)
    return torch._foreach_mul(sizes, torch._foreach_sign(weights))


def prox_of_three_halves(weights: Sequence[Tensor], threshold: float | Tensor) -> list[Tensor]:
    """``sign(w) r^2`` with ``r = |w| / (h + sqrt(h^2 + |w|))``, ``h = 3 t / 4``: the prox of ``t |w|^(3/2)``."""
    half = 0.75 * threshold
    half = half.clamp(max=1e18) if isinstance(half, Tensor) else min(half, 1e18)
    sizes = torch._foreach_abs(weights)
    below = add_number(sizes, half * half)
    torch._foreach_sqrt_(below)
    add_number_(below, half)
    torch._foreach_clamp_min_(below, [torch.finfo(w.dtype).tiny for w in weights])  # 0 / 0 for w = t = 0
    roots = torch._foreach_div(sizes, below)
    torch._foreach_mul_(roots, roots)
    torch._foreach_minimum_(roots, sizes)  # by rounding it could be more
    return torch._foreach_mul(roots, torch._foreach_sign(weights))
