"""L2 regularization in the loss gradient: what SGD papers call weight decay, and the baseline of every figure."""

import torch
from torch import Tensor

from wdlab.regularizers.base import Regularizer


class L2(Regularizer):
    """``R(w) = |w|^2 / 2``: adds ``s * w`` to the gradient before the optimizer sees it.  [grade B]

    The optimizer multiplies the decay by its learning rate, and scales it if it is adaptive. With torch's SGD this is
    its ``weight_decay``, to the last bit. Decays every parameter it is given; ``for_model`` gives it the weights of
    linear, convolution and embedding layers unless ``scope`` is ``all``.

    Args:
        params, strength: as in :class:`wdlab.regularizers.Regularizer`.
    """

    def after_backward(self) -> None:
        for group in self.groups:
            if group["strength"] != 0:
                add_l2_gradient(group["params"], group["strength"])

    def penalty(self) -> Tensor:
        return sum((half_square(g["params"]) * g["strength"] for g in self.groups), super().penalty())


def add_l2_gradient(params: list[Tensor], strength: float) -> None:
    """In place: ``p.grad += strength * p`` for every parameter that has a gradient."""
    live = [p for p in params if p.grad is not None]
    if live:
        torch._foreach_add_([p.grad for p in live], [p.detach() for p in live], alpha=strength)


def half_square(params: list[Tensor]) -> Tensor:
    """``sum(w^2) / 2`` over all elements of all parameters, a scalar tensor."""
    norms = torch._foreach_norm([p.detach() for p in params])
    return torch.stack([n.float() if n.dtype != torch.float64 else n for n in norms]).square().sum() / 2
