"""How much of a network is exactly gone: weights and units."""

import torch
from torch import Tensor

ZERO = 1e-13  # a weight below this counts as zero, as in the released code of P2


def zero_weights(weights: list[Tensor]) -> Tensor:
    """Share of weights with ``|w| < 1e-13``, in [0, 1]."""
    zeros = sum(((w.detach().abs() < ZERO).sum() for w in weights), torch.zeros((), device=weights[0].device))
    return zeros / sum(w.numel() for w in weights)


def active_units(paths: list[Tensor]) -> Tensor:
    """Share of homogeneous units with a non-zero path ``|w| |v|``, in [0, 1]."""
    return (torch.cat(paths) > 0).double().mean()
