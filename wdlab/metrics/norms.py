"""Norms of the decayed weights and the path-norm of the homogeneous pairs."""

import torch
from torch import Tensor


def weight_norm(weights: list[Tensor], order: float = 2) -> Tensor:
    """The L1 or L2 norm over all elements of all weights together, a 0-dim float64 tensor."""
    norms = torch.stack([n.double() for n in torch._foreach_norm([w.detach() for w in weights], order)])
    return torch.linalg.vector_norm(norms, order)


def path_norm(paths: list[Tensor]) -> Tensor:
    """Sum over units of ``|w| |v|``; ``paths`` as ``wdlab.homogeneous.unit_paths`` gives them."""
    return torch.cat(paths).double().sum()
