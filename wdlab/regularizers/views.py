"""Views, the parameters that a method acts on with their strengths and learning rates.

A method is bound to a *view*. ``OptimizerView`` has the parameters of an optimizer. ``wdlab.stacked.methods.RowsView``
has the parameters of several runs that are trained as one stack of tensors. Both have the members of
``ParametersView``.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from wdlab.schedules import Clock
from wdlab.tensors import scalar_for


class GradientSection(NamedTuple):
    """Parameters with a gradient that are in the same group of the method and the same group of the optimizer."""

    params: list[Tensor]
    group: dict[str, Any]  # the method's group
    optimizer_group: dict[str, Any]  # the optimizer's group
    strength: float | Tensor  # without the factors of over_time; for a stack a number per run, (runs, 1, 1)
    lr: float | Tensor  # learning rate of the next update; for a stack a number per run, (runs, 1, 1)
    over_time: tuple["Factor", ...] = ()  # the factors on the strength of these parameters

    @property
    def ascent_sign(self) -> int:
        """-1 if the optimizer maximizes, which reverses the sign of every gradient; else 1."""
        return -1 if self.optimizer_group.get("maximize") else 1


class ActiveGroup(NamedTuple):
    """Parameters to decay in the current step, with the strength and the learning rate of the step."""

    params: list[Tensor]
    strength: float | Tensor  # with the factors of over_time; for a stack a number per run, (runs, 1, 1)
    lr: float | Tensor  # for a stack a number per run, (runs, 1, 1)
    maximize: bool  # True if the optimizer maximizes
    group: dict[str, Any]  # the method's group


class Factor(Protocol):
    """The protocol of a factor on a strength, which ``OverTime`` implements."""

    @property
    def is_partial(self) -> bool:
        """True if the factor multiplies the strength of some parameters only."""

    def acts_on(self, p: Tensor) -> bool:
        """Return True if the factor multiplies the strength of ``p``."""

    def factor(self, step: int, optimizer_group: dict[str, Any], clock: Clock) -> float | Tensor:
        """Return the factor for the next update; ``step`` is the number of updates made so far."""


class ParametersView(Protocol):
    """The protocol of the parameters that a method acts on: those of an optimizer, or of a stack of runs."""

    optimizer: torch.optim.Optimizer
    runs: int | None  # the number of runs that the method acts on at once; None for the parameters of an optimizer

    def sections(self, groups: Sequence[dict[str, Any]], decayed_only: bool = False) -> list[GradientSection]:
        """Return the tensors to act on, in sections by group of the method and group of the optimizer.

        Args:
            groups: groups of the method.
            decayed_only: True to leave out groups whose strength is 0.
        """

    def tensor(self, p: Tensor) -> Tensor:
        """Return the tensor that the method updates in place of ``p``: ``p`` itself, or its slice of a stack."""

    def optimizer_group(self, p: Tensor) -> dict[str, Any]:
        """Return the optimizer's group that holds the method's parameter ``p``; {} if no group holds it."""

    def state(self, p: Tensor) -> Mapping[str, Any]:
        """Return the optimizer's state of ``p``, by torch's names; {} before the first step.

        For a stack, ``step`` is as for one run, and the other tensors have the shape of ``tensor(p)``.
        """

    def lr_of(self, p: Tensor) -> float | Tensor:
        """Return the learning rate of ``p`` in the current update; for a stack a number per run, (runs, 1, 1)."""


def effective_strength(
    strength: float | Tensor, over_time: Iterable[Factor], step: int, optimizer_group: dict[str, Any], clock: Clock
) -> float | Tensor:
    """Return the strength of the next update: ``strength`` times all factors.

    Args:
        strength: the strength without factors; for a stack a number per run, (runs, 1, 1).
        over_time: the factors.
        step: number of updates made so far.
        optimizer_group: the optimizer's group of the parameters; {} if the method is not attached.
        clock: length of the run and of an epoch.

    Returns:
        A number; a scalar tensor if a factor is one; for a stack a number per run, (runs, 1, 1). The Python number 0 if
        any factor is the Python number 0.
    """
    for schedule in over_time:
        factor = schedule.factor(step, optimizer_group, clock)
        if not isinstance(factor, Tensor) and factor == 0:
            return 0.0
        strength = strength * factor
    return strength


def with_factors(
    sections: Sequence[GradientSection], over_time: tuple[Factor, ...], params: Sequence[Tensor], view: ParametersView
) -> list[GradientSection]:
    """Return sections with their factors; a section is divided where a factor acts on some of its parameters only.

    Args:
        sections: sections of a method, without factors.
        over_time: the factors of the method.
        params: all parameters of the method.
        view: the view that the sections are from.
    """
    if not over_time:
        return list(sections)
    if not any(factor.is_partial for factor in over_time):
        return [section._replace(over_time=over_time) for section in sections]
    acting = {id(view.tensor(p)): tuple(factor for factor in over_time if factor.acts_on(p)) for p in params}
    divided = []
    for section in sections:
        parts: dict[tuple[Factor, ...], list[Tensor]] = {}
        for t in section.params:
            parts.setdefault(acting[id(t)], []).append(t)
        divided += [section._replace(params=tensors, over_time=factors) for factors, tensors in parts.items()]
    return divided


class OptimizerView:
    """The parameters of a torch optimizer.

    Args:
        optimizer: the optimizer that the method is attached to.
        owner: name of the method, for error messages.
    """

    runs = None

    def __init__(self, optimizer: torch.optim.Optimizer, owner: str) -> None:
        self.optimizer, self._owner = optimizer, owner
        self._groups: list[dict[str, Any]] = []
        self._params: list[list[Tensor]] = []
        self._group_of: dict[int, dict[str, Any]] = {}

    @property
    def group_of(self) -> dict[int, dict[str, Any]]:
        """The optimizer's group of each parameter, by the parameter's ``id``; the same dict until the groups change."""
        groups = self.optimizer.param_groups
        lists = [group["params"] for group in groups]
        if not _are_identical(self._groups, groups) or not all(map(_are_identical, self._params, lists)):
            self._groups, self._params = list(groups), [list(params) for params in lists]
            self._group_of = {id(p): group for group in groups for p in group["params"]}
        return self._group_of

    def sections(self, groups: Sequence[dict[str, Any]], decayed_only: bool = False) -> list[GradientSection]:
        """Return the parameters in ``groups`` that have a gradient, a section per group of method and optimizer.

        Args:
            groups: groups of the method.
            decayed_only: True to leave out groups whose strength is 0.

        Raises:
            RuntimeError: for a sparse gradient.
        """
        group_of, sections = self.group_of, []
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
                sections.append(GradientSection(params, group, optimizer_group, group["strength"], lr))
        return sections

    def tensor(self, p: Tensor) -> Tensor:
        """Return ``p`` itself."""
        return p

    def optimizer_group(self, p: Tensor) -> dict[str, Any]:
        """Return the optimizer's group that holds ``p``; {} if no group holds it."""
        return self.group_of.get(id(p), {})

    def state(self, p: Tensor) -> Mapping[str, Any]:
        """Return the optimizer's state of ``p``; {} before the first step."""
        return self.optimizer.state.get(p, {})

    def lr_of(self, p: Tensor) -> float | Tensor:
        """Return the learning rate of ``p`` in a form that can be multiplied with ``p``."""
        return scalar_for(p, self.optimizer_group(p)["lr"])

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "owner": self._owner}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def _are_identical(some: Sequence, others: Sequence) -> bool:
    """Return True if two lists hold identical objects (``is``) in the same order."""
    return len(some) == len(others) and all(map(operator.is_, some, others))
