"""The steps of torch's optimizers on the batched tensors of a stack, with a learning rate for each run."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wdlab.stacked.network import StackedNetwork
from wdlab.tensors import scale_


class SGDStep:
    """The step of ``torch.optim.SGD`` on the parameters of a stack.

    Args:
        network: the network of the stack.
        group: a parameter group of the optimizer, from which its settings are read.
        begun: True if the runs are resumed, so that the state holds moments of earlier updates.

    Attributes:
        state: the moments of the optimizer by torch's name for them; a list of tensors in the order and the shapes of
            ``network.parameters``.
    """

    def __init__(self, network: StackedNetwork, group: Mapping[str, Any], begun: bool) -> None:
        self._params, self._gradients, self._begun = network.parameters, network.gradients, begun
        self._momentum, self._dampening, self._nesterov = group["momentum"], group["dampening"], group["nesterov"]
        self.state = {"momentum_buffer": [torch.zeros_like(p) for p in self._params]} if self._momentum else {}

    def __call__(self, lr: Tensor, step: int) -> None:
        """Make update ``step + 1`` of every run; ``lr`` holds their learning rates, (runs, 1, 1)."""
        directions = self._gradients
        if self._momentum:
            means = self.state["momentum_buffer"]
            if self._begun:
                torch._foreach_mul_(means, self._momentum)
                torch._foreach_add_(means, directions, alpha=1 - self._dampening)
            else:
                torch._foreach_copy_(means, directions)
            directions = torch._foreach_add(directions, means, alpha=self._momentum) if self._nesterov else means
        for p, direction in zip(self._params, directions, strict=True):
            p.addcmul_(direction, lr, value=-1)
        self._begun = True

    def scalars(self, step: int) -> dict[str, Tensor]:
        """Return the scalars that torch keeps in the state of a parameter after ``step`` updates: none."""
        return {}


class AdamStep:
    """The step of ``torch.optim.Adam`` and ``AdamW`` on the parameters of a stack.

    Arguments and attributes are the same as those of ``SGDStep``; ``begun`` has no effect.
    """

    def __init__(self, network: StackedNetwork, group: Mapping[str, Any], begun: bool) -> None:
        self._params, self._gradients = network.parameters, network.gradients
        (self._beta1, self._beta2), self._eps = group["betas"], group["eps"]
        self._decay = group["weight_decay"] if group.get("decoupled_weight_decay") else 0.0
        self.state = {name: [torch.zeros_like(p) for p in self._params] for name in ("exp_avg", "exp_avg_sq")}

    def __call__(self, lr: Tensor, step: int) -> None:
        """Make update ``step + 1`` of every run; ``lr`` holds their learning rates, (runs, 1, 1)."""
        if self._decay:
            scale_(self._params, 1 - lr * self._decay)
        means, squares = self.state["exp_avg"], self.state["exp_avg_sq"]
        torch._foreach_lerp_(means, self._gradients, 1 - self._beta1)
        torch._foreach_mul_(squares, self._beta2)
        torch._foreach_addcmul_(squares, self._gradients, self._gradients, value=1 - self._beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, math.sqrt(1 - self._beta2 ** (step + 1)))
        torch._foreach_add_(roots, self._eps)
        for p, mean, root in zip(self._params, means, roots, strict=True):
            p.addcmul_(torch.div(mean, root, out=root), lr, value=-1 / (1 - self._beta1 ** (step + 1)))

    def scalars(self, step: int) -> dict[str, Tensor]:
        """Return the scalars that torch keeps in the state of a parameter after ``step`` updates: ``step``."""
        return {"step": torch.tensor(float(step))}
