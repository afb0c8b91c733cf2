"""The penalties ``R(w)`` that are sums over single weights: their values and gradients."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from wdlab.tensors import accumulation_dtype, local_shards, over_shards


class Penalty(Protocol):
    """``R(w)``, summed over all elements of all tensors."""

    def value(self, params: Sequence[Tensor]) -> Tensor:
        """``R``, a scalar tensor of at least float32."""

    def gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        """``dR/dw`` of each tensor, in its shape; not to be written to. Of sharded tensors the local shards."""


class HalfSquare:
    """``sum w^2 / 2``: L2, the penalty that ordinary weight decay is the gradient of."""

    def value(self, params: Sequence[Tensor]) -> Tensor:
        norms = torch.stack(
            [torch.linalg.vector_norm(w, dtype=accumulation_dtype(w.dtype)) for w in local_shards(params)]
        )
        return over_shards(params, norms.square()).sum() / 2

    def gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        return local_shards(params)


class Absolute:
    """``sum |w|``: L1. Its gradient at 0 is 0."""

    def value(self, params: Sequence[Tensor]) -> Tensor:
        sums = torch.stack(
            [torch.linalg.vector_norm(w, 1, dtype=accumulation_dtype(w.dtype)) for w in local_shards(params)]
        )
        return over_shards(params, sums).sum()

    def gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        return torch._foreach_sign(local_shards(params))


class Bridge:
    """``sum (|w| + epsilon)^p - epsilon^p`` for p > 0: the Bridge penalty, exactly so with ``epsilon`` 0.

    Its gradient ``p sign(w) (|w| + epsilon)^(p-1)`` is 0 at 0 and, for p < 1, at most ``p epsilon^(p-1)``.
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
