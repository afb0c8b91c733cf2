"""The values and gradients of those penalties ``R(w)`` that are sums of a function of single weights."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from wdlab.tensors import accumulation_dtype, local_shards, over_shards


class Penalty(Protocol):
    """The protocol of a penalty ``R(w)``, which is a sum over all elements of several tensors."""

    def value(self, params: Sequence[Tensor]) -> Tensor:
        """Return ``R`` summed over all elements of ``params``, as a scalar tensor of at least float32."""

    def gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return ``dR/dw`` for each tensor, in its shape. The caller must not write to the result.

        For a sharded tensor, the result is the gradient for its local shard.
        """


class HalfSquare:
    """The L2 penalty ``sum w^2 / 2``, whose gradient is ordinary weight decay."""

    def value(self, params: Sequence[Tensor]) -> Tensor:
        norms = torch.stack(
            [torch.linalg.vector_norm(w, dtype=accumulation_dtype(w.dtype)) for w in local_shards(params)]
        )
        return over_shards(params, norms.square()).sum() / 2

    def gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        return local_shards(params)


class Absolute:
    """The L1 penalty ``sum |w|``. Its gradient at 0 is defined as 0."""

    def value(self, params: Sequence[Tensor]) -> Tensor:
        sums = torch.stack(
            [torch.linalg.vector_norm(w, 1, dtype=accumulation_dtype(w.dtype)) for w in local_shards(params)]
        )
        return over_shards(params, sums).sum()

    def gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        return torch._foreach_sign(local_shards(params))


class Bridge:
    """The Bridge penalty ``sum |w|^p`` for p > 0, smoothed to ``sum (|w| + epsilon)^p - epsilon^p``.

    Its gradient ``p sign(w) (|w| + epsilon)^(p-1)`` is defined as 0 at 0. For p < 1 and ``epsilon > 0`` the gradient's
    size is at most ``p epsilon^(p-1)``.

    Args:
        p: the exponent, > 0.
        epsilon: offset of ``|w|``, >= 0; 0 for the Bridge penalty itself.
    """

    def __init__(self, p: float, epsilon: float = 0.0) -> None:
        self.p, self.epsilon = p, epsilon

    def value(self, params: Sequence[Tensor]) -> Tensor:
        sizes = [w.to(accumulation_dtype(w.dtype)).abs() for w in local_shards(params)]
        sums = [((x + self.epsilon) ** self.p - self.epsilon**self.p).sum() for x in sizes]
        return over_shards(params, torch.stack(sums)).sum()

    def gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        weights = local_shards(params)
        slopes = torch._foreach_abs(weights)
        torch._foreach_add_(slopes, self.epsilon)
        torch._foreach_pow_(slopes, self.p - 1)
        torch._foreach_mul_(slopes, self.p)
        slopes = [slope.nan_to_num_(nan=0.0, posinf=torch.finfo(slope.dtype).max) for slope in slopes]
        torch._foreach_mul_(slopes, torch._foreach_sign(weights))
        return slopes


class Huber:
    """The Huber penalty: the sum of ``w^2 / 2`` where ``|w| <= delta``, else of ``delta (|w| - delta / 2)``.

    Its gradient is ``w``, limited to ``[-delta, delta]``.

    Args:
        delta: the threshold, > 0.
    """

    def __init__(self, delta: float) -> None:
        self.delta = delta

    def value(self, params: Sequence[Tensor]) -> Tensor:
        sizes = [w.to(accumulation_dtype(w.dtype)).abs() for w in local_shards(params)]
        inner = [x.clamp(max=self._limit(x.dtype)) for x in sizes]
        sums = [(low * (x - low / 2)).sum() for x, low in zip(sizes, inner, strict=True)]
        return over_shards(params, torch.stack(sums)).sum()

    def gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        return [w.clamp(-self._limit(w.dtype), self._limit(w.dtype)) for w in local_shards(params)]

    def _limit(self, dtype: torch.dtype) -> float:
        """Return ``delta``, or the largest number of ``dtype`` if that is smaller."""
        return min(self.delta, torch.finfo(dtype).max)
