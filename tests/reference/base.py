"""The optimizers without any decay, for one tensor: Adam (Kingma and Ba 2015), AMSGrad (Reddi et al. 2018), SGD."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = list[Tensor]
Gradients = Sequence[Tensors]  # for each step, those of all tensors
Steps = Iterator[Tensors]  # the weights after each step


class Adam:
    """Adam's memory of one tensor: ``w - lr * direction(g)`` is its step."""

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, amsgrad: bool = False) -> None:
        self.betas, self.eps, self.amsgrad = betas, eps, amsgrad
        self.step, self.m, self.v, self.largest = 0, 0.0, torch.zeros(()), torch.zeros(())

    def direction(self, g: Tensor) -> Tensor:
        """Take in a gradient and return ``m / (sqrt(v) + eps)``, both moments bias-corrected."""
        beta1, beta2 = self.betas
        self.step += 1
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        self.largest = torch.maximum(self.largest, self.v)
        return self.m / (1 - beta1**self.step) / (self.second_moment().sqrt() + self.eps)

    def second_moment(self) -> Tensor:
        """Return the bias-corrected second moment; with AMSGrad, of the largest one so far."""
        return (self.largest if self.amsgrad else self.v) / (1 - self.betas[1] ** self.step)


class SGD:
    """SGD's memory of one tensor, as torch defines momentum, dampening and Nesterov's form."""

    def __init__(self, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False) -> None:
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov
        self.buffer: Tensor | None = None

    def direction(self, g: Tensor) -> Tensor:
        """Take in a gradient and return what the learning rate multiplies."""
        if self.buffer is None:
            self.buffer = g
        else:
            self.buffer = self.momentum * self.buffer + (1 - self.dampening) * g
        if self.momentum == 0:
            return g
        return g + self.momentum * self.buffer if self.nesterov else self.buffer


def changed_one_by_one(
    change: Callable[[float, float], float],
    weights: Tensors,
    gradients: Gradients,
    lrs: Sequence[float],
    strengths: Sequence[float],
    base: type[Adam | SGD],
    settings: dict[str, Any],
) -> Steps:
    """Yield the weights after each step of an optimizer after whose own step ``w = change(w, lr * s)``."""
    optimizers = [base(**settings) for _ in weights]
    for gradient, lr in zip(gradients, lrs, strict=True):
        after = [w - lr * o.direction(g) for w, o, g in zip(weights, optimizers, gradient, strict=True)]
        weights = [
            torch.tensor([change(x, lr * s) for x in u.flatten().tolist()]).reshape(u.shape)
            for u, s in zip(after, strengths, strict=True)
        ]
        yield weights
