"""Sparsity of a network: the share of its weights and units that are zero."""

from collections.abc import Sequence

import torch
from torch import Tensor

ZERO = 1e-13  # a weight below this counts as zero, as in the released code of P2


def l1_norms_and_zeros(weights: Sequence[Tensor]) -> Tensor:
    """Return the L1 norm of each weight tensor, and the number of its elements with ``|w| < 1e-13``.

    Returns:
        float64 (2, len(weights)): the norms in row 0, the numbers in row 1. A number is nan if its tensor's norm is not
        finite.
    """
    norms, counts = [], []
    for w in weights:  # one copy at a time; much faster than torch's L1 norm and a bool mask
        size = w.detach().abs()
        norms.append(size.sum())
        counts.append(size.lt_(ZERO).sum())  # in place: 0 or 1 in the weight's own type
    results = torch.stack(norms + counts).double().view(2, -1)
    results[1].masked_fill_(~torch.isfinite(results[0]), torch.nan)
    return results


def active_unit_share(paths: list[Tensor]) -> Tensor:
    """Return the share of homogeneous units with a non-zero ``|w| |v|``, in [0, 1]; nan if any is not finite.

    Args:
        paths: the result of ``wdlab.homogeneous.unit_path_norms``.
    """
    path = torch.cat(paths)
    return torch.where(torch.isfinite(path).all(), (path > 0).double().mean(), torch.nan)
