"""Sparsity of a network: the share of its weights and units that are zero."""

from collections.abc import Sequence

import torch
from torch import Tensor

ZERO = 1e-13  # a weight below this counts as zero, as in the released code of P2


def l1_norm_and_zeros(weight: Tensor, place: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the L1 norm of each row of a weight, and the number of its elements with ``|w| < 1e-13``.

    Args:
        weight: rows as ``norms.as_rows`` returns them, (runs, n).
        place: memory for a copy of ``weight``, in its shape; None allocates it.

    Returns:
        The norms (runs,) and the numbers (runs,), in the weight's own type.
    """
    size = torch.abs(weight, out=place)  # one copy; much faster than torch's L1 norm and a bool mask
    return size.sum(1), size.lt_(ZERO).sum(1)  # in place: 0 or 1 in the weight's own type


def share_of_zeros(l1_norms: Tensor, zeros: Tensor, count: int) -> Tensor:
    """Return the share of zeros among all weights, in [0, 1], (runs,); nan if a weight is not finite.

    Args:
        l1_norms: the L1 norm of each weight tensor, float64 (runs, tensors).
        zeros: the number of zeros of each weight tensor, float64 (runs, tensors).
        count: the number of elements of all weight tensors of a run.
    """
    return torch.where(torch.isfinite(l1_norms), zeros, torch.nan).sum(1) / count


def active_unit_share(paths: Sequence[Tensor]) -> Tensor:
    """Return the share of homogeneous units with a non-zero ``|w| |v|``, in [0, 1]; nan if any is not finite: (runs,).

    Args:
        paths: as in ``norms.path_norm``.
    """
    path = torch.cat(list(paths), dim=1)
    return torch.where(torch.isfinite(path).all(1), (path > 0).double().mean(1), torch.nan)
