"""The optimizers without any decay, for one tensor: Adam (Kingma and Ba 2015), AMSGrad (Reddi et al. 2018), SGD."""

from collections.abc import Iterator, Sequence

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
