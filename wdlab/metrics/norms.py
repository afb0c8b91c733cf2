"""Norms of the decayed weights and the path-norm of the homogeneous pairs."""

from collections.abc import Sequence

import torch
from torch import Tensor


def each_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of every tensor, float64 (len(tensors),)."""
    return torch.stack(torch._foreach_norm([t.detach() for t in tensors])).double()


def together(norms: Tensor) -> Tensor:
    """The L2 norm of several tensors as one long vector, from that of each, (tensors,); 0-dim."""
    return torch.linalg.vector_norm(norms)


def each_dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """``sum(a * b)`` of every pair of tensors of equal shape, float64 (len(left),); added up in their own type."""
    return torch.stack([_dot(a.detach(), b.detach()) for a, b in zip(left, right, strict=True)]).double()


def _dot(left: Tensor, right: Tensor) -> Tensor:
    if left.dim() == 4 and left.is_contiguous(memory_format=torch.channels_last):
        left, right = left.permute(0, 2, 3, 1), right.permute(0, 2, 3, 1)  # as it lies in memory: no copy
    return torch.dot(left.reshape(-1), right.reshape(-1))


def path_norm(paths: list[Tensor]) -> Tensor:
    """Sum over units of ``|w| |v|``; ``paths`` as ``wdlab.homogeneous.unit_paths`` gives them."""
    return torch.cat(paths).double().sum()
