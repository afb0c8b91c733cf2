"""Norms of the decayed weights and the path-norm of the homogeneous pairs."""

from collections.abc import Sequence

import torch
from torch import Tensor


def each_norm(tensors: Sequence[Tensor], order: float = 2) -> Tensor:
    """The L1 or L2 norm of every tensor, float64 (len(tensors),)."""
    plain = [t.detach() for t in tensors]
    # Four times as fast as torch's own L1 norm on the CPU; only one of these copies is there at a time.
    found = [t.abs().sum() for t in plain] if order == 1 else torch._foreach_norm(plain, order)
    return torch.stack(found).double()


def together(norms: Tensor, order: float = 2) -> Tensor:
    """The L1 or L2 norm of several tensors as one long vector, from that of each, (tensors,); 0-dim."""
    return torch.linalg.vector_norm(norms, order)


def weight_norm(weights: Sequence[Tensor], order: float = 2) -> Tensor:
    """The L1 or L2 norm over all elements of all weights together, a 0-dim float64 tensor."""
    return together(each_norm(weights, order), order)


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
