"""How much of a network is exactly gone: weights and units."""

import torch
from torch import Tensor

ZERO = 1e-13  # a weight below this counts as zero, as in the released code of P2


def zero_weights(weights: list[Tensor]) -> Tensor:
    """Share of weights with ``|w| < 1e-13``, in [0, 1]; nan if a weight is not finite."""
    zeros = sum(((w.detach().abs() < ZERO).sum() for w in weights), torch.zeros((), device=weights[0].device))
    finite = torch.stack([torch.isfinite(w.detach()).all() for w in weights]).all()
    return torch.where(finite, zeros / sum(w.numel() for w in weights), torch.nan)


def active_units(paths: list[Tensor]) -> Tensor:
    """Share of homogeneous units with a non-zero path ``|w| |v|``, in [0, 1]; nan if a path is not finite."""
    path = torch.cat(paths)
    return torch.where(torch.isfinite(path).all(), (path > 0).double().mean(), torch.nan)
