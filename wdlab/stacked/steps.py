"""The steps of torch's optimizers on the tensors of a stack, fused, with a learning rate for each run."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wdlab.stacked.network import StackedNetwork, StackedTensors


class _Part(NamedTuple):
    """Neighbouring runs with one learning rate, and the memory of their tensors: lists of (runs, n)."""

    lr: float
    params: list[Tensor]
    gradients: list[Tensor]
    moments: list[list[Tensor]]  # one list for each name in the step's state


class Step:
    """The base class of the steps: the state of an optimizer on a stack, and its parts with one learning rate each.

    Args:
        network: the network of the stack.
        group: a parameter group of the optimizer, from which its settings are read.
        lrs: the learning rate of each run, without the factor of the schedule.
        names: torch's names of the optimizer's moments.

    Attributes:
        state: the moments by name, zeros at first.
    """

    def __init__(
        self, network: StackedNetwork, group: Mapping[str, Any], lrs: Sequence[float], names: Sequence[str]
    ) -> None:
        self._group = group
        self.state: dict[str, StackedTensors] = {name: network.zeros() for name in names}
        self._parts, first = [], 0
        for lr, same in itertools.groupby(lrs):
            rows = slice(first, first := first + len(list(same)))
            tensors = [network.memory, network.gradient_memory, *self.state.values()]
            params, gradients, *moments = ([t[rows] for t in one.rows] for one in tensors)
            self._parts.append(_Part(lr, params, gradients, moments))


class SGDStep(Step):
    """The step of ``torch.optim.SGD`` on the parameters of a stack.

    Args:
        network: as in ``Step``.
        group: as in ``Step``.
        lrs: as in ``Step``.
        begun: True if the runs are resumed, so that the state holds moments of earlier updates.
    """

    def __init__(self, network: StackedNetwork, group: Mapping[str, Any], lrs: Sequence[float], begun: bool) -> None:
        super().__init__(network, group, lrs, ["momentum_buffer"] if group["momentum"] else [])
        self._begun = begun

    def __call__(self, factor: float, step: int) -> None:
        """Make update ``step + 1`` of every run; ``factor`` multiplies the learning rates."""
        names = ("momentum", "dampening", "nesterov")
        settings = {name: self._group[name] for name in names} | {"maximize": False}
        for part in self._parts:
            moments = part.moments[0] if part.moments else []
            numbers = {"lr": part.lr * factor, "weight_decay": 0.0, "is_first_step": bool(moments) and not self._begun}
            torch._fused_sgd_(part.params, part.gradients, moments, **numbers, **settings)
        self._begun = True

    def scalars(self, step: int) -> dict[str, Tensor]:
        """Return the scalars that torch keeps in the state of a parameter after ``step`` updates: none."""
        return {}


class AdamStep(Step):
    """The step of ``torch.optim.Adam`` and ``AdamW``, with or without AMSGrad, on the parameters of a stack.

    Arguments are the same as those of ``SGDStep``; ``begun`` has no effect.
    """

    def __init__(self, network: StackedNetwork, group: Mapping[str, Any], lrs: Sequence[float], begun: bool) -> None:
        maxima = ["max_exp_avg_sq"] if group["amsgrad"] else []
        super().__init__(network, group, lrs, ["exp_avg", "exp_avg_sq", *maxima])
        self._steps = [torch.zeros((), device=p.device) for p in network.parameters[:1]] * len(network.parameters)
        self._decay = group["weight_decay"] if group.get("decoupled_weight_decay") else 0.0

    def __call__(self, factor: float, step: int) -> None:
        """Make update ``step + 1`` of every run; ``factor`` multiplies the learning rates."""
        self._steps[0].fill_(step + 1)
        (beta1, beta2), eps = self._group["betas"], self._group["eps"]
        settings = {"beta1": beta1, "beta2": beta2, "eps": eps, "amsgrad": self._group["amsgrad"], "maximize": False}
        for part in self._parts:
            mean, square, *largest = part.moments
            lists = part.params, part.gradients, mean, square, largest[0] if largest else [], self._steps
            torch._fused_adamw_(*lists, lr=part.lr * factor, weight_decay=self._decay, **settings)

    def scalars(self, step: int) -> dict[str, Tensor]:
        """Return the scalars that torch keeps in the state of a parameter after ``step`` updates: ``step``."""
        return {"step": torch.tensor(float(step))}
