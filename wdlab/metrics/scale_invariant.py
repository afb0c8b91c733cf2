"""Metrics that do not change when the weights of a layer under normalization are scaled (P4).  [grade C]

Bjorck et al. 2020, arXiv 2012.13841, have the idea; that each is taken layer by layer is our operational reading. A
layer's gradient shrinks by 1/c when its weights grow by c, so a gradient is multiplied by its own layer's norm.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wdlab.metrics.norms import each_norm


def gradient_times_weight(gradient_norms: Tensor, weight_norms: Tensor) -> Tensor:
    """``sum over weights l of |g_l| |w_l|``, from the norms (weights,). The same for ``w_l -> c w_l``."""
    return torch.dot(gradient_norms, weight_norms)


def angular_update(weight_norms: Tensor, new_norms: Tensor, update_norms: Tensor, products: Tensor) -> Tensor:
    """Mean over weights of the angle in radians between ``w_l`` before and behind a step; 0 for one that is zero.

    The same for ``w_l -> c w_l`` together with ``lr -> c^2 lr``. The angle is taken from the part of the update that is
    perpendicular to the weight, since the cosine of a tiny angle is 1 in floating point. All arguments: (weights,).

    Args:
        weight_norms, new_norms: ``|w|`` before and behind the step.
        update_norms: ``|u|`` of the update ``u``.
        products: ``u . w`` with the weight before the step.
    """
    along = products / weight_norms
    across = (update_norms.square() - along.square()).clamp(min=0).sqrt()
    angles = torch.atan2(across, weight_norms + along)
    return torch.where(weight_norms * new_norms == 0, 0.0, angles).mean()


def effective_lr(lr: float | Tensor, weight_norm: Tensor) -> Tensor:
    """``a / |w|^2`` over all decayed weights. The same for ``w -> c w`` together with ``a -> c^2 a``."""
    return lr / weight_norm.square()


def in_units_of_layers(product: Callable[[Tensor], Tensor], weights: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """``v -> D H D v`` with ``D = |w_l|`` on the coordinates of layer l, the same for ``w_l -> c w_l``.

    Args:
        product: ``v -> H v`` on flat vectors of all coordinates of ``weights``, in their order.
        weights: the layers' weights.
    """
    counts = torch.tensor([w.numel() for w in weights], device=weights[0].device)
    scale = each_norm(weights).to(weights[0].dtype).repeat_interleave(counts)
    return lambda vector: scale * product(scale * vector)
