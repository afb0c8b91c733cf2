"""How much of a network is exactly gone: weights and units."""

from collections.abc import Sequence

import torch
from torch import Tensor

ZERO = 1e-13  # a weight below this counts as zero, as in the released code of P2


def sizes(weights: Sequence[Tensor]) -> Tensor:
    """The L1 norm of every weight, and how many of its elements have ``|w| < 1e-13``: float64 (2, len(weights)).

    The count is nan where an element is not finite.
    """
    norms, counts = [], []
    for w in weights:  # one by one, since each takes a copy; much faster than torch's L1 norm and truth values
        size = w.detach().abs()
        norms.append(size.sum())
        counts.append(size.lt_(ZERO).sum())  # zeros and ones of the weight's own type
    found = torch.stack(norms + counts).double().view(2, -1)
    found[1].masked_fill_(~torch.isfinite(found[0]), torch.nan)
    return found


def active_units(paths: list[Tensor]) -> Tensor:
    """Share of homogeneous units with a non-zero path ``|w| |v|``, in [0, 1]; nan if a path is not finite."""
    path = torch.cat(paths)
    return torch.where(torch.isfinite(path).all(), (path > 0).double().mean(), torch.nan)
