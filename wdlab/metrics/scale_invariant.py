"""Metrics that do not change when the weights of a layer before a normalization are scaled (P4).

[grade C: the idea is from Bjorck et al. 2020, arXiv 2012.13841; taking each metric layer by layer is our reading]

If a layer's weights are multiplied by c, its gradient is divided by c. Hence the product of the gradient and the norm
of the layer's weights does not change.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wdlab.metrics.norms import as_rows, each_norm


def gradient_times_weight(gradient_norms: Tensor, weight_norms: Tensor) -> Tensor:
    """Return the sum over layers l of ``|g_l| |w_l|``, which is unchanged by ``w_l -> c w_l``: (runs,).

    Args:
        gradient_norms: ``|g_l|`` of the gradient by each layer's weight, (runs, layers).
        weight_norms: ``|w_l|`` of each layer's weight, (runs, layers).
    """
    return (gradient_norms * weight_norms).sum(1)


def angles(weight_norms: Tensor, new_norms: Tensor, update_norms: Tensor, products: Tensor) -> Tensor:
    """Return the angle in radians between each layer's ``w_l`` before and after a step: (runs, layers).

    The angle is unchanged by ``w_l -> c w_l`` together with ``lr -> c^2 lr``. The angle is computed from the part
    of the update that is perpendicular to the weight, since the cosine of a tiny angle is 1 in floating point. The
    angle of a weight that is zero before or after the step counts as 0.

    Args:
        weight_norms: ``|w_l|`` before the step, (runs, layers).
        new_norms: ``|w_l|`` after the step, (runs, layers).
        update_norms: ``|u_l|`` of the update ``u_l``, new weight minus old, (runs, layers).
        products: ``u_l . w_l`` with the weight before the step, (runs, layers).
    """
    along = products / weight_norms
    across = (update_norms.square() - along.square()).clamp(min=0).sqrt()
    turned = torch.atan2(across, weight_norms + along)
    return torch.where(weight_norms * new_norms == 0, 0.0, turned)


def root_mean_square(values: Tensor) -> Tensor:
    """Return the root of the mean over layers of the squares of ``values`` (runs, layers): (runs,)."""
    return values.square().mean(1).sqrt()


def effective_lr(lr: float | Tensor, weight_norm: Tensor) -> Tensor:
    """Return ``lr / |w|^2``, where ``weight_norm`` is the norm ``|w|`` of all decayed weights, (runs,).

    The result is unchanged by ``w -> c w`` together with ``lr -> c^2 lr``.
    """
    return lr / weight_norm.square()


def log_effective_lr(lr: float | Tensor, weight_norms: Tensor, power: int) -> Tensor:
    """Return the mean over layers l of ``log10(lr / |w_l|^k)``, (runs,).

    For layers that a normalization follows, steps of SGD with learning rate ``lr`` turn ``w_l`` as much as steps with
    ``c^2 lr`` turn ``c w_l``, so k is 2. Adam's steps do not depend on the scale of the gradient, so k is 1 (van
    Laarhoven 2017, arXiv 1706.05350).

    Args:
        lr: the learning rate, for several runs (runs,).
        weight_norms: ``|w_l|`` of the weights of these layers, (runs, layers).
        power: k.
    """
    return torch.log10(torch.as_tensor(lr).reshape(-1, 1) / weight_norms**power).mean(1)


def in_units_of_layers(product: Callable[[Tensor], Tensor], weights: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the function ``v -> D H D v``; the diagonal matrix D is ``|w_l|`` at the coordinates of layer l.

    The eigenvalues and the trace of ``D H D`` are unchanged by ``w_l -> c w_l``, if H is the Hessian.

    Args:
        product: the function ``v -> H v``, on flat vectors of all coordinates of ``weights`` in their order.
        weights: the weight ``w_l`` of each layer.
    """
    counts = torch.tensor([w.numel() for w in weights], device=weights[0].device)
    scale = each_norm(as_rows(weights)).flatten().to(weights[0].dtype).repeat_interleave(counts)
    return lambda vector: scale * product(scale * vector)
