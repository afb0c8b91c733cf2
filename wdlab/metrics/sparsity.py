"""Sparsity of a network: the share of its weights and units that are zero."""

from collections.abc import Sequence

import torch
from torch import Tensor

ZERO = 1e-13  # a weight below this counts as zero, as in the released code of P2


def l1_norms_and_zeros(rows: Sequence[Tensor], places: Sequence[Tensor | None] | None = None) -> Tensor:
    """Return the L1 norm of each row of each tensor, and the number of its elements with ``|w| < 1e-13``.

    Args:
        rows: weights as ``norms.as_rows`` returns them, (runs, n) each.
        places: memory for a copy of each of ``rows``, in its shape; None allocates it.

    Returns:
        float64 (2, runs, tensors): the norms first, then the numbers. A number is nan if the norm is not finite.
    """
    norms, counts = [], []
    # one copy at a time; much faster than torch's L1 norm and a bool mask
    for w, place in zip(rows, places or [None] * len(rows), strict=True):
        size = torch.abs(w, out=place)
        norms.append(size.sum(1))
        counts.append(size.lt_(ZERO).sum(1))  # in place: 0 or 1 in the weight's own type
    results = torch.stack([torch.stack(values, dim=1) for values in (norms, counts)]).double()
    results[1].masked_fill_(~torch.isfinite(results[0]), torch.nan)
    return results


def active_unit_share(paths: Sequence[Tensor]) -> Tensor:
    """Return the share of homogeneous units with a non-zero ``|w| |v|``, in [0, 1]; nan if any is not finite: (runs,).

    Args:
        paths: as in ``norms.path_norm``.
    """
    path = torch.cat(list(paths), dim=1)
    return torch.where(torch.isfinite(path).all(1), (path > 0).double().mean(1), torch.nan)
