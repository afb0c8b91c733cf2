"""The contract of every weight decay method: which penalty, how it is applied, how strongly.

A method overrides the moments of a step that it needs. ``attach`` runs them inside the steps of a torch optimizer, so a
method works in any training loop that calls ``optimizer.step()``. The arithmetic is a pure function of tensors and
scalars in the method's own file, and the class says only when it happens. Changes of the strength over time are objects
of their own (``over_time.py``) that every method takes.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from wdlab.homogeneous import weights
from wdlab.regularizers.checks import check_choice
from wdlab.regularizers.description import describe
from wdlab.regularizers.gradient_sums import GradientSums
from wdlab.regularizers.hooks import Handle, Wiring, check_held
from wdlab.regularizers.over_time import OverTime, check_over_time, on_device
from wdlab.regularizers.parameters import DecayedParameters, Params, places_of
from wdlab.regularizers.views import ActiveGroup, Section, View, effective_strength
from wdlab.schedules import Clock

SCOPES = ("weights", "all")
Schedules = OverTime | Iterable[OverTime] | None


class Regularizer(DecayedParameters):
    """No regularization, and the base of every method.

    Every method decays the parameters that it is given. ``for_model`` gives it the weights of linear, convolution and
    embedding layers, or all parameters with ``scope="all"``.

    Args:
        params: tensors or named tensors to decay, or dicts ``{"params": [...], "strength": ...}``, as for torch
            optimizers.
        strength: s in ``L(train) + s * R(w)``, for groups that do not give their own. 0 switches the method off: the
            optimizer's steps are then bit-identical to those without it.
        over_time: factor on the strength in each step: an ``OverTime`` (``Early``, ``Delayed``, ``WarmUp``,
            ``CoherenceGate``, ``GradientScale`` ...), or several, whose factors multiply.

    Attributes:
        groups: dicts with ``params``, ``strength`` and what else a group was given.
        updates: number of steps made under this method.
        clock: length of the run and of an epoch, for factors that need them. ``wdlab.train`` sets it.

    Raises:
        ValueError: for a strength that is negative or not finite, an empty or repeated parameter list, a complex
            parameter.
    """

    times_lr: ClassVar[bool] = True  # whether the decay of a step is multiplied by the learning rate
    stackable: ClassVar[bool] = True  # whether the moments can act on a stack of runs; each class declares its own

    def __init__(self, params: Params, strength: float = 0.0, over_time: Schedules = None) -> None:
        self.over_time = check_over_time(over_time)
        self.updates = 0
        self.clock = Clock()
        self.turn: int | None = None  # place among the methods of the optimizer
        self.gradient_sums = GradientSums()
        self._view: View | None = None
        self._warned = self.is_copy = False
        super().__init__(params, strength)

    @classmethod
    def for_model(cls, model: nn.Module, strength: float = 0.0, scope: str = "weights", **options: Any) -> Self:
        """Return the method for a whole model, as the files in ``configs/regularizer`` name it.

        Args:
            model: frozen parameters are left out.
            strength: as for the class.
            scope: ``weights`` (see ``wdlab.homogeneous.weights``) or ``all``.
            options: further arguments of the class.

        Raises:
            ValueError: for an unknown scope, or a strength that would decay nothing, because everything in the scope is
                frozen or ``over_time`` is 0 in every step.
        """
        check_choice("scope", scope, SCOPES)
        params = [p for p in (weights(model) if scope == "weights" else model.parameters()) if p.requires_grad]
        if not params:
            raise ValueError(f"scope={scope}: nothing to decay, all of it is frozen in {type(model).__name__}")
        return cls(params, strength=strength, **options)._placed_in(model)

    def _placed_in(self, model: nn.Module) -> Self:
        """Return the method after recording where in the model its parameters are.

        Raises:
            ValueError: if nothing would be decayed.
        """
        self._places = places_of(self.params, model)
        if reason := self._reason_to_be_idle():
            raise ValueError(f"strength={self.strength}: would decay nothing, {reason}; strength=0 is without decay")
        return self

    def _check_added(self, tensors: Sequence[Tensor]) -> None:
        if self._view is not None:
            check_held(self.optimizer, tensors)

    @property
    def strength_in_force(self) -> float:
        """The strength of the first group in the last step (before the first step: without factors from gradients)."""
        return float(self.strength_on_device)

    @property
    def strength_on_device(self) -> float | Tensor:
        """``strength_in_force`` without waiting for the device: a scalar tensor if it depends on the gradients."""
        group = {} if self._view is None else self._view.optimizer_group(self.params[0])
        return effective_strength(self.strength, self.over_time, max(0, self.updates - 1), group, self.clock)

    def describe(self) -> str:
        """Return what is decayed and how strongly: a summary in one line, then a line for each tensor.

        The summary is, for example, "L2: 3 tensors, 4,224 values, strength 0.0001, multiplied by the learning rate".
        A line has the tensor's name where it is known, its shape, its number of values and its strength.
        """
        name = type(self).__name__
        if type(self) is Regularizer:
            return f"{name}: decays nothing"
        remarks = ["multiplied by the learning rate"] if self.times_lr else []
        if self.over_time:
            remarks.append("over time " + " x ".join(map(repr, self.over_time)))
        if reason := self._reason_to_be_idle():
            remarks.append(f"decays nothing: {reason}")
        return describe(name, self._rows(), remarks)

    def _reason_to_be_idle(self) -> str | None:
        """Return why a strength that is not 0 decays nothing; None if it decays, or if there is no such strength."""
        if all(group["strength"] == 0 for group in self.groups):
            return None
        if not any(p.requires_grad for group in self.groups if group["strength"] != 0 for p in group["params"]):
            return "all its parameters are frozen"
        zero = [schedule for schedule in self.over_time if schedule.is_always_zero]
        return f"over_time={zero[0]!r} is 0 in every step" if zero else None

    # -- the moments of a step, in order; no gradients are recorded in any of them -------------------------------------

    def after_backward(self) -> None:
        """Add to the gradients of the loss in ``p.grad`` (by ``add_to_gradients``), or read them."""

    def before_step(self) -> None:
        """Decay the weights, which are still old, or keep what the decay after the step needs of them."""

    def after_step(self) -> None:
        """Decay, shrink or project the weights, which are new."""

    def penalty(self) -> Tensor:
        """Return ``s * R(w)`` for the strengths as given; a scalar tensor on the parameters' device."""
        return torch.zeros((), device=self.params[0].device)

    def penalty_gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradient of ``R`` by each of ``params``, in their shapes. Must not be written to."""
        return [torch.zeros_like(p) for p in params]

    def add_to_gradients(self, params: Sequence[Tensor], addends: Sequence[Tensor], factor: float | Tensor) -> None:
        """Add ``factor * addend`` to each gradient for the duration of the step, see :class:`GradientSums`."""
        self.gradient_sums.add(params, addends, factor)

    def active_groups(self) -> list[ActiveGroup]:
        """Return the parameters to regularize in this step, with the strength and learning rate that apply to them.

        Parameters without a gradient are left out, and all whose strength is the number 0 now. A strength that depends
        on the gradients (a gate, the gradient scale) is a scalar tensor and may be 0 without being left out.

        Raises:
            RuntimeError: for a sparse gradient.
        """
        found = []
        for params, group, optimizer_group, given, lr in self._bound.sections(self.groups, decayed_only=True):
            strength = effective_strength(given, self.over_time, self.updates, optimizer_group, self.clock)
            if isinstance(strength, Tensor) or strength != 0:
                found.append(ActiveGroup(params, strength, lr, optimizer_group.get("maximize", False), group))
        return found

    def sections(self) -> list[Section]:
        """Return the parameters with a gradient, by group of the method and of the optimizer; those of strength 0 too.

        Raises:
            RuntimeError: for a sparse gradient.
        """
        return self._bound.sections(self.groups)

    # -- attachment --------------------------------------------------------------------------------------------------

    @property
    def _bound(self) -> View:
        """The view that this method is bound to."""
        assert self._view is not None, "only in the moments of a step"
        return self._view

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that this method is attached to."""
        return self._bound.optimizer

    def bind(self, view: View | None) -> None:
        """Act on the parameters of ``view`` from now on. ``attach`` does it for those who take no steps themselves."""
        self._view = view

    def attach(self, optimizer: torch.optim.Optimizer) -> Handle:
        """Run this method's moments inside every ``optimizer.step()``, closures included.

        Several methods may be attached. They see the gradient of the loss alone first, then each moment is gone through
        in the order of their attachment. After the step ``p.grad`` is the gradient of the loss, as with torch's own
        ``weight_decay``.

        A method that is copied or pickled together with its optimizer is attached to the optimizer's copy; attaching it
        there again, or to another optimizer, is allowed once. A copy of the optimizer alone has no methods, since torch
        does not copy hooks.

        Returns:
            A handle whose ``remove()`` detaches the method.

        With a GradScaler, call ``scaler.unscale_(optimizer)`` before ``scaler.step(optimizer)``; a step that the scaler
        skips is skipped here too.

        Raises:
            ValueError: if the optimizer does not hold all of this method's parameters, or is of a kind that the method
                or its ``over_time`` cannot work with.
            RuntimeError: if this method is attached already; in a step, if its gradients are still scaled, or if one of
                its parameters was replaced in the optimizer or (after ``for_model``) in the model.
        """
        if (reason := self._reason_to_be_idle()) and not self._warned:
            self._warned = True
            warnings.warn(f"{type(self).__name__} decays nothing: {reason}", UserWarning, stacklevel=2)
        return Wiring.attach(self, optimizer)

    @property
    def is_attached(self) -> bool:
        """True if the method acts in the steps of an optimizer."""
        return self._view is not None

    def is_attached_to(self, optimizer: torch.optim.Optimizer) -> bool:
        """Return True if the method acts in this optimizer's steps."""
        return self._view is not None and self.optimizer is optimizer

    def detach(self) -> None:
        """Take the method off its optimizer, as the handle's ``remove()`` does."""
        Wiring.of(self.optimizer).leave(self, self.optimizer)
        self._view, self.is_copy = None, False

    def check_parameters(self) -> None:
        """Raise a RuntimeError if a parameter was replaced in the optimizer or the model. Called before every step."""
        self.check_replaced(self._bound.group_of)

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise a ValueError if this method cannot work with the optimizer, or with its parameters as they are now."""

    def obstacle_to_stacking(self, optimizer: torch.optim.Optimizer) -> str | None:
        """Return why this method cannot act on a stack of runs under an optimizer of this kind; None if it can.

        In a stack, tensors have a leading dimension of runs, and strength and learning rate a number for each run.
        """
        if not vars(type(self)).get("stackable", False):
            return f"{type(self).__name__} acts on single runs"
        return next(filter(None, (one.obstacle_to_stacking(optimizer) for one in self.over_time)), None)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_checked": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._view is not None:  # the optimizer is a copy too, which has no hooks
            self.is_copy = True
            Wiring.of(self.optimizer).join(self)

    def __copy__(self) -> Self:
        """Return a method on the same parameters, attached to nothing."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__getstate__() | {"_view": None, "turn": None, "gradient_sums": GradientSums()})
        return twin

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs, as plain types and tensors."""
        return {
            "strengths": [group["strength"] for group in self.groups],
            "updates": self.updates,
            "over_time": [schedule.state_dict() for schedule in self.over_time],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a ``state_dict()``.

        Raises:
            ValueError: if it was saved with another number of groups.
        """
        strengths = state["strengths"]
        if len(strengths) != len(self.groups):
            raise ValueError(f"state has {len(strengths)} groups, this {type(self).__name__} has {len(self.groups)}")
        schedules = state.get("over_time", [])
        if len(schedules) != len(self.over_time):
            raise ValueError(f"over_time: state has {len(schedules)}, this {type(self).__name__} {len(self.over_time)}")
        for group, strength in zip(self.groups, strengths, strict=True):
            group["strength"] = strength
        for schedule, saved in zip(self.over_time, schedules, strict=True):
            schedule.load_state_dict(on_device(saved, self.params[0].device))
        self.updates = state.get("updates", 0)
