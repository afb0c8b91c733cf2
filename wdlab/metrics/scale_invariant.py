"""Metrics that do not change when the weights of a layer before a normalization are scaled (P4).

[grade C: the idea is that of Bjorck et al. 2020, arXiv 2012.13841; taking each metric layer by layer is our reading]

If a layer's weights are multiplied by c, its gradient is divided by c. Hence the gradient times the norm of its own
layer's weights does not change.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wdlab.metrics.norms import each_norm


def gradient_times_weight(gradient_norms: Tensor, weight_norms: Tensor) -> Tensor:
    """Return ``sum over weights l of |g_l| |w_l|``, from the norms (weights,). Unchanged by ``w_l -> c w_l``."""
    return torch.dot(gradient_norms, weight_norms)


def angular_update(weight_norms: Tensor, new_norms: Tensor, update_norms: Tensor, products: Tensor) -> Tensor:
    """Return the mean over weights of the angle in radians between ``w_l`` before and after a step.

    Unchanged by ``w_l -> c w_l`` together with ``lr -> c^2 lr``. The angle is computed from the part of the update that
    is perpendicular to the weight, since the cosine of a tiny angle is 1 in floating point. The angle of a weight that
    is zero before or after the step counts as 0.

    Args:
        weight_norms: ``|w|`` before the step, (weights,).
        new_norms: ``|w|`` after the step, (weights,).
        update_norms: ``|u|`` of the update ``u``, (weights,).
        products: ``u . w`` with the weight before the step, (weights,).
    """
    along = products / weight_norms
    across = (update_norms.square() - along.square()).clamp(min=0).sqrt()
    angles = torch.atan2(across, weight_norms + along)
    return torch.where(weight_norms * new_norms == 0, 0.0, angles).mean()


def effective_lr(lr: float | Tensor, weight_norm: Tensor) -> Tensor:
    """Return ``a / |w|^2`` for the learning rate a and the norm ``|w|`` of all decayed weights.

    Unchanged by ``w -> c w`` together with ``a -> c^2 a``.
    """
    return lr / weight_norm.square()


def in_units_of_layers(product: Callable[[Tensor], Tensor], weights: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the function ``v -> D H D v``, where the diagonal matrix D is ``|w_l|`` on the coordinates of layer l.

    Eigenvalues and trace of ``D H D`` are unchanged by ``w_l -> c w_l``.

    Args:
        product: ``v -> H v`` on flat vectors of all coordinates of ``weights``, in their order.
        weights: the layers' weights.
    """
    counts = torch.tensor([w.numel() for w in weights], device=weights[0].device)
    scale = each_norm(weights).to(weights[0].dtype).repeat_interleave(counts)
    return lambda vector: scale * product(scale * vector)
