"""Sizes of gradients and updates, at the step that is logged."""

import torch
from torch import Tensor

from wdlab.metrics.norms import weight_norm


def gradient_norm(parameters: list[Tensor]) -> Tensor:
    """L2 norm of the gradients now in ``p.grad``, over all parameters that have one."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return weight_norm(gradients) if gradients else torch.zeros((), dtype=torch.float64)


def relative_update(before: list[Tensor], after: list[Tensor]) -> Tensor:
    """``|w_new - w_old| / |w_old|`` over all decayed weights together; decay and prox count as part of the update."""
    change = torch._foreach_sub([w.detach() for w in after], before)
    return weight_norm(change) / weight_norm(before)
