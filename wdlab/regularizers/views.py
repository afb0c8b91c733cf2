"""The parameters that a method acts on, and the one place that joins strength, schedules and learning rate.

A method is bound to a *view*: ``OptimizerView`` for the parameters of an optimizer, or the view of a stack of runs
(``wdlab.stacked.methods``), which has the same members.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from wdlab.schedules import Clock
from wdlab.tensors import scalar_for


class Section(NamedTuple):
    """Parameters with a gradient that share a group of the method and a group of the optimizer."""

    params: list[Tensor]
    group: dict[str, Any]  # of the method
    optimizer_group: dict[str, Any]
    strength: float | Tensor  # as given; for a stack a number per run, (runs, 1, 1)
    lr: float | Tensor  # of the next update; for a stack a number per run, (runs, 1, 1)

    @property
    def ascent_sign(self) -> int:
        """-1 where the optimizer maximizes, and so reverses the sign of the gradient, else 1."""
        return -1 if self.optimizer_group.get("maximize") else 1


class ActiveGroup(NamedTuple):
    """Parameters with the strength and the learning rate that apply to them in this step."""

    params: list[Tensor]
    strength: float | Tensor
    lr: float | Tensor
    maximize: bool  # whether the optimizer maximizes
    group: dict[str, Any]  # of the method


class Factor(Protocol):
    """A factor on a strength, see ``OverTime``."""

    def factor(self, step: int, optimizer_group: dict[str, Any], clock: Clock) -> float | Tensor:
        """Return the factor of the update after ``step`` updates."""


class View(Protocol):
    """The parameters that a method acts on."""

    optimizer: torch.optim.Optimizer

    def sections(self, groups: Sequence[dict[str, Any]], decayed_only: bool = False) -> list[Section]:
        """Return the parameters of the method's groups that have a gradient."""

    def tensor(self, p: Tensor) -> Tensor:
        """Return the tensor that stands for a parameter of the method."""

    def optimizer_group(self, p: Tensor) -> dict[str, Any]:
        """Return the optimizer's group of a parameter of the method; empty if the optimizer does not hold it."""


def effective_strength(
    strength: float | Tensor, over_time: Iterable[Factor], step: int, optimizer_group: dict[str, Any], clock: Clock
) -> float | Tensor:
    """Return ``strength`` times the factors of the update after ``step`` updates.

    Returns:
        A number, a scalar tensor if a factor depends on the gradients, or a number per run of a stack, (runs, 1, 1).
        The number 0 as soon as a factor is the number 0.
    """
    for schedule in over_time:
        factor = schedule.factor(step, optimizer_group, clock)
        if not isinstance(factor, Tensor) and factor == 0:
            return 0.0
        strength = strength * factor
    return strength


class OptimizerView:
    """The parameters of a torch optimizer.

    Args:
        optimizer: the one that takes the steps.
        owner: name of the method, for error messages.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, owner: str) -> None:
        self.optimizer, self._owner = optimizer, owner
        self._groups: list[dict[str, Any]] = []
        self._params: list[list[Tensor]] = []
        self._group_of: dict[int, dict[str, Any]] = {}

    @property
    def group_of(self) -> dict[int, dict[str, Any]]:
        """The optimizer's group of each parameter, by its id; the same dict while the groups are the same."""
        groups = self.optimizer.param_groups
        lists = [group["params"] for group in groups]
        if not _are_identical(self._groups, groups) or not all(map(_are_identical, self._params, lists)):
            self._groups, self._params = list(groups), [list(params) for params in lists]
            self._group_of = {id(p): group for group in groups for p in group["params"]}
        return self._group_of

    def sections(self, groups: Sequence[dict[str, Any]], decayed_only: bool = False) -> list[Section]:
        """Return the parameters of a method's groups that have a gradient.

        Args:
            groups: of the method.
            decayed_only: leave out groups whose strength is 0.

        Raises:
            RuntimeError: for a sparse gradient.
        """
        group_of, found = self.group_of, []
        for group in groups:
            if decayed_only and group["strength"] == 0:
                continue
            by_optimizer_group: dict[int, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    if p.grad.is_sparse:
                        raise RuntimeError(f"{self._owner} does not support sparse gradients")
                    by_optimizer_group.setdefault(id(group_of[id(p)]), []).append(p)
            for params in by_optimizer_group.values():
                optimizer_group = group_of[id(params[0])]
                lr = scalar_for(params[0], optimizer_group["lr"])
                found.append(Section(params, group, optimizer_group, group["strength"], lr))
        return found

    def tensor(self, p: Tensor) -> Tensor:
        """Return ``p``."""
        return p

    def optimizer_group(self, p: Tensor) -> dict[str, Any]:
        """Return the optimizer's group of ``p``; empty if the optimizer does not hold it."""
        return self.group_of.get(id(p), {})

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "owner": self._owner}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def _are_identical(some: Sequence, others: Sequence) -> bool:
    """Return True if two lists hold the very same objects."""
    return len(some) == len(others) and all(map(operator.is_, some, others))
