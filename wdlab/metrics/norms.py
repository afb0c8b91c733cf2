"""Norms and products of the tensors of one run, or of several runs that are trained side by side.

The functions take tensors as *rows*: shape (runs, n), with the n values of one tensor of a run in each row. ``as_rows``
makes them. Results have one value per run and tensor: (runs, tensors). Sums over the tensors are thereby sums over
neighbouring numbers, whose rounding does not depend on the number of runs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def as_rows(tensors: Sequence[Tensor], stacked: bool = False, like: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Return each tensor, detached, in the shape (runs, n); without a copy if the tensor is dense in memory.

    Args:
        tensors: tensors of any shape; if ``stacked``, (runs, ...).
        stacked: True if the first dimension is the runs; False for the tensors of one run.
        like: a tensor for each of ``tensors``, in its shape. The values of a row are in the order in which this tensor
            has them in memory, so that rows with the same ``like`` can be combined; None for ``tensors`` themselves.
    """
    if stacked:
        return [t.detach().flatten(1) for t in tensors]
    return [_as_row(t.detach(), layout) for t, layout in zip(tensors, like or tensors, strict=True)]


def _as_row(tensor: Tensor, like: Tensor) -> Tensor:
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(1, -1)


def each_norm(rows: Sequence[Tensor], stacked: bool = False) -> Tensor:
    """Return the L2 norm of each row of each tensor: float64 (runs, tensors); ``stacked`` as in ``norms_of_rows``."""
    return torch.stack(norms_of_rows(rows, stacked), dim=1).double()


def norms_of_rows(rows: Sequence[Tensor], stacked: bool = False) -> list[Tensor]:
    """Return the L2 norm of each row of each tensor, (runs,) per tensor, in the tensors' own type.

    Args:
        rows: rows.
        stacked: True for the runs of a stack, however many they are, whose sums are rounded in one way.
    """
    if stacked:
        return [torch.linalg.vector_norm(t, dim=1) for t in rows]
    return [norm.unsqueeze(0) for norm in torch._foreach_norm(rows)]


def each_dot(left: Sequence[Tensor], right: Sequence[Tensor], scratch: Tensor | None = None) -> Tensor:
    """Return ``sum(a * b)`` of the rows of each pair of tensors, summed in their own type: float64 (runs, tensors).

    Args:
        left: rows.
        right: rows of the same shapes.
        scratch: memory for the products, as many elements as the largest of these tensors has; None allocates it. On a
            CPU memory that is used again stays in the caches.
    """
    products = (torch.mul(a, b, out=_place(scratch, a)) for a, b in zip(left, right, strict=True))
    return torch.stack([product.sum(1) for product in products], dim=1).double()


def _place(scratch: Tensor | None, like: Tensor) -> Tensor | None:
    """Return a part of ``scratch`` in the shape of ``like``; None if there is none of its type."""
    if scratch is None or scratch.dtype != like.dtype or scratch.numel() < like.numel():
        return None
    return scratch[: like.numel()].view_as(like)


def total_norm(norms: Tensor) -> Tensor:
    """Return the L2 norm of several tensors together, (runs,), from the norms of the single tensors (runs, tensors)."""
    return torch.linalg.vector_norm(norms, dim=1)


def path_norm(paths: Sequence[Tensor]) -> Tensor:
    """Return the sum over units of ``|w| |v|``, float64 (runs,).

    Args:
        paths: ``|w| |v|`` of the units of each pair of layers, (runs, units).
    """
    return torch.cat(list(paths), dim=1).double().sum(1)


def per_tensor(*lists: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return lists of one tensor (runs,) per weight as one tensor each, float64 (runs, weights)."""
    together = torch.stack([value for values in lists for value in values], dim=1).double()
    return together.unflatten(1, (len(lists), -1)).unbind(1)
