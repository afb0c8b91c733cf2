"""How much of a network is exactly gone: weights and units."""

from collections.abc import Sequence

import torch
from torch import Tensor

ZERO = 1e-13  # a weight below this counts as zero, as in the released code of P2


def zero_weights(weights: Sequence[Tensor], l1: Tensor) -> Tensor:
    """Share of weights with ``|w| < 1e-13``, in [0, 1]; nan if a weight is not finite.

    ``l1`` is their L1 norm, which is finite only if all of them are.
    """
    # lt_ leaves zeros and ones of the weight's own type, which add up faster than truth values.
    zeros = torch.stack([w.detach().abs().lt_(ZERO).sum() for w in weights]).double().sum()
    return torch.where(torch.isfinite(l1), zeros / sum(w.numel() for w in weights), torch.nan)


def active_units(paths: list[Tensor]) -> Tensor:
    """Share of homogeneous units with a non-zero path ``|w| |v|``, in [0, 1]; nan if a path is not finite."""
    path = torch.cat(paths)
    return torch.where(torch.isfinite(path).all(), (path > 0).double().mean(), torch.nan)
