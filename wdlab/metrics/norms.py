"""Norms of the decayed weights and the path-norm of the homogeneous pairs."""

from collections.abc import Sequence

import torch
from torch import Tensor


def each_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of each tensor as one float64 tensor (len(tensors),)."""
    return torch.stack(torch._foreach_norm([t.detach() for t in tensors])).double()


def total_norm(norms: Tensor) -> Tensor:
    """Return the L2 norm of several tensors together, 0-dim, from the L2 ``norms`` (tensors,) of the single tensors."""
    return torch.linalg.vector_norm(norms)


def each_dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return ``sum(a * b)`` of each pair of tensors of equal shape, summed in their own type: float64 (len(left),)."""
    return torch.stack([_dot(a.detach(), b.detach()) for a, b in zip(left, right, strict=True)]).double()


def _dot(left: Tensor, right: Tensor) -> Tensor:
    if left.dim() == 4 and left.is_contiguous(memory_format=torch.channels_last):
        # Permuted to the order in memory, since flattening in any other order would copy.
        left, right = left.permute(0, 2, 3, 1), right.permute(0, 2, 3, 1)
    return torch.dot(left.reshape(-1), right.reshape(-1))


def path_norm(paths: list[Tensor]) -> Tensor:
    """Return the sum over units of ``|w| |v|``, 0-dim float64; ``paths``: result of ``homogeneous.unit_path_norms``."""
    return torch.cat(paths).double().sum()
