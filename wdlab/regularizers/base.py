"""The base class of the weight decay methods.

A method overrides some of the hooks ``after_backward``, ``before_step`` and ``after_step``. ``attach`` runs the hooks
inside the steps of a torch optimizer, so a method works in any training loop that calls ``optimizer.step()``. Functions
in the method's own file do the arithmetic on tensors; the class only determines when they are called. A strength that
changes over time is a separate object (``over_time.py``), which every method accepts.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from wdlab.regularizers.description import describe
from wdlab.regularizers.gradient_sums import GradientSums
from wdlab.regularizers.hooks import AttachedMethods, Handle, check_params_in_optimizer
from wdlab.regularizers.over_time import OverTime, check_over_time, on_device
from wdlab.regularizers.parameters import DecayedParameters, Params, params_in_scope, places_of
from wdlab.regularizers.runs import ActsOnRuns
from wdlab.regularizers.views import ActiveGroup, GradientSection, ParametersView, effective_strength, with_factors
from wdlab.schedules import Clock

Schedules = OverTime | Iterable[OverTime] | None


class Regularizer(ActsOnRuns, DecayedParameters):
    """The base class of every weight decay method; the class itself decays nothing.

    A method decays the parameters that it is given. ``for_model`` selects them from a model: the weights of linear,
    convolution and embedding layers, or all parameters with ``scope="all"``.

    Args:
        params: the parameters to decay, in any form that torch optimizers accept: tensors, ``(name, tensor)`` pairs, or
            groups ``{"params": [...], "strength": ...}``.
        strength: s in ``L(train) + s * R(w)``, for the groups without an own ``strength``. 0 switches the method off:
            the optimizer's steps are then bit-identical to steps without the method.
        over_time: factor on the strength in each step: an ``OverTime`` (``Early``, ``Delayed``, ``WarmUp``,
            ``CoherenceGate``, ``GradientScale`` ...), or several, whose factors are multiplied. None: no factor.

    Attributes:
        groups: a dict per parameter group, with ``params``, ``strength`` and the further keys that the group was given.
        updates: number of optimizer steps that this method has taken part in.
        clock: length of the run and of an epoch, for ``over_time`` objects that need them. ``wdlab.train`` sets it.

    Raises:
        ValueError: for a strength that is negative or not finite, an empty parameter list, or a parameter that is
            complex or given twice.
    """

    times_lr: ClassVar[bool] = True  # True if the decay of a step is multiplied by the learning rate
    stackable: ClassVar[bool] = True
    cautious: bool = False  # True if only weights are decayed that the optimizer's update does not move away from zero
    minimizes_penalty: bool = False  # True if steps of a constant strength minimize the loss plus ``penalty()``

    def __init__(self, params: Params, strength: float = 0.0, over_time: Schedules = None) -> None:
        self.over_time = check_over_time(over_time)
        self.updates, self.clock = 0, Clock()
        self.turn: int | None = None  # rank in the order of attachment to the optimizer; None while detached
        self.gradient_sums = GradientSums()
        self._view: ParametersView | None = None
        self._warned = self.is_copy = False
        super().__init__(params, strength)

    @classmethod
    def for_model(cls, model: nn.Module, strength: float = 0.0, scope: str = "weights", **options: Any) -> Self:
        """Create the method for a whole model. The files in ``configs/regularizer`` call this.

        Args:
            model: the network, whose frozen parameters are not decayed.
            strength: as for the class.
            scope: ``weights`` for the parameters that ``wdlab.homogeneous.weights`` returns, or ``all`` parameters.
            options: further keyword arguments of the class.

        Raises:
            ValueError: for an unknown scope, if all parameters in the scope are frozen, or if the strength is not 0 but
                ``over_time`` is 0 in every step.
        """
        return cls(params_in_scope(model, scope), strength=strength, **options)._placed_in(model)

    def _placed_in(self, model: nn.Module) -> Self:
        """Record where in the model this method's parameters are, and return the method.

        Raises:
            ValueError: if nothing would be decayed although the strength is not 0, or if the model lacks what a factor
                of ``over_time`` needs.
        """
        self._places = places_of(self.params, model)
        for schedule in self.over_time:
            schedule.find_in(model, [row.tensor for row in self._rows() if row.strength != 0])
        self.check_decays()
        return self

    def _check_added(self, tensors: Sequence[Tensor]) -> None:
        if self._view is not None:
            check_params_in_optimizer(self.optimizer, tensors)

    @property
    def strength_in_force(self) -> float:
        """The first parameter's strength in the last step, with the factors of ``over_time``.

        Before the first step: the strength of the first step, with 1 for the factors that depend on gradients.
        """
        return float(self.strength_on_device)

    @property
    def strength_on_device(self) -> float | Tensor:
        """``strength_in_force`` without waiting for the device: a scalar tensor if a factor is one, else a number."""
        first = self.params[0]
        group = {} if self._view is None else self._view.optimizer_group(first)
        factors = [schedule for schedule in self.over_time if schedule.acts_on(first)]
        return effective_strength(self.strength, factors, max(0, self.updates - 1), group, self.clock)

    def describe(self) -> str:
        """Return a text that lists what is decayed and how strongly: a summary in one line, then a line per tensor.

        The summary is, for example, "L2: 3 tensors, 4,224 values, strength 0.0001, multiplied by the learning rate".
        A tensor's line has its name (if the name is known), shape, number of values and strength.
        """
        if type(self) is Regularizer:
            return "Regularizer: decays nothing"
        multiplied = "multiplied" if self.times_lr else "not multiplied"
        remarks = [f"{multiplied} by the learning rate"] + ["cautious"] * self.cautious
        if self.over_time:
            remarks.append("over time " + " x ".join(map(repr, self.over_time)))
            remarks += dict.fromkeys(note for schedule in self.over_time if (note := schedule.note_on_method(self)))
        if reason := self._reason_to_be_idle():
            remarks.append(f"decays nothing: {reason}")
        return describe(type(self).__name__, self._rows(), remarks)

    @property
    def has_objective(self) -> bool:
        """True if the steps minimize the loss plus ``penalty()``; ``objective/*`` is logged for such a method only."""
        constant = all(schedule.is_constant for schedule in self.over_time)
        return type(self) is Regularizer or (self.minimizes_penalty and constant)

    # -- the hooks of a step, in the order of their calls, all under torch.no_grad ------------------------------------

    def after_backward(self) -> None:
        """Hook between backward and the step: read ``p.grad`` or call ``add_to_gradients``. Does nothing by default."""

    def before_step(self) -> None:
        """Hook right before the step: decay the old weights or store data for later. Does nothing by default."""

    def after_step(self) -> None:
        """Hook right after the step: decay, shrink or project the new weights. Does nothing by default."""

    def penalty(self) -> Tensor:
        """Return ``s * R(w)``, s without the factors of ``over_time``, as a scalar tensor on the parameters' device."""
        return torch.zeros((), device=self.params[0].device)

    def penalty_gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return ``dR/dp`` for each of ``params`` (if sharded, for the local shard). Callers only read the tensors."""
        return [torch.zeros_like(p) for p in params]

    def metrics(self) -> dict[str, Tensor]:
        """Return the values of the last step to be logged, by metric name: scalars, for a stack (runs,). {} here."""
        return {}

    def add_to_gradients(self, params: Sequence[Tensor], addends: Sequence[Tensor], factor: float | Tensor) -> None:
        """Add ``factor * addend`` to each ``p.grad`` until the optimizer's step is done, see :class:`GradientSums`."""
        self.gradient_sums.add(params, addends, factor)

    def active_groups(self) -> list[ActiveGroup]:
        """Return the parameters to decay in this step, with the strength and the learning rate that apply to them.

        Left out are parameters without a gradient, and parameters whose strength in this step is the Python number 0. A
        strength that is a tensor, since it depends on the gradients, is returned even if its value is 0. A sparse
        gradient raises a RuntimeError.
        """
        active = []
        for params, group, optimizer_group, given, lr, factors in self.sections(decayed_only=True):
            strength = effective_strength(given, factors, self.updates, optimizer_group, self.clock)
            if isinstance(strength, Tensor) or strength != 0:
                active.append(ActiveGroup(params, strength, lr, optimizer_group.get("maximize", False), group))
        return active

    def sections(self, decayed_only: bool = False) -> list[GradientSection]:
        """Return all parameters with a gradient, one section per group of the method and group of the optimizer.

        A section is divided where ``over_time`` acts on some of its parameters only. A sparse gradient raises a
        RuntimeError.

        Args:
            decayed_only: True to leave out groups whose strength is 0.
        """
        return with_factors(self._bound.sections(self.groups, decayed_only), self.over_time, self.params, self._bound)

    # -- attachment --------------------------------------------------------------------------------------------------

    @property
    def _bound(self) -> ParametersView:
        """The view that this method is bound to. An AssertionError if there is none."""
        assert self._view is not None, "only while the method is attached"
        return self._view

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that this method is attached to. An AssertionError if there is none."""
        return self._bound.optimizer

    def bind(self, view: ParametersView | None) -> None:
        """Act on the parameters of ``view`` from now on; None: on none.

        ``attach`` calls this. Code that runs the hooks itself, for example a drop-in optimizer, calls this directly.
        """
        self._view = view

    def attach(self, optimizer: torch.optim.Optimizer) -> Handle:
        """Run this method's hooks inside every ``optimizer.step()``, with or without a closure.

        Several methods may be attached to an optimizer. First the ``over_time`` of all methods reads the gradient of
        the loss. Then each hook is run for all methods in the order of their attachment, before the next hook is run.
        After the step ``p.grad`` is the gradient of the loss, as after a step with torch's own ``weight_decay``.

        If a method and its optimizer are copied or pickled together, the method's copy is attached to the optimizer's
        copy. ``attach`` may be called once on the method's copy. A copy of an optimizer alone has no methods, since
        torch does not copy hooks.

        With a GradScaler, call ``scaler.unscale_(optimizer)`` before ``scaler.step(optimizer)``. In a step that the
        scaler skips, the method does nothing.

        Returns:
            A handle whose ``remove()`` detaches the method.

        Raises:
            ValueError: if the optimizer does not hold all parameters of this method, if the method or its ``over_time``
                cannot work with the optimizer, or if the ``over_time`` is in use by another method.
            RuntimeError: if this method is attached already; in a step, if the gradients are still scaled, or if one of
                the parameters was replaced in the optimizer or (after ``for_model``) in the model.
        """
        if (reason := self._reason_to_be_idle()) and not self._warned:
            self._warned = True
            warnings.warn(f"{type(self).__name__} decays nothing: {reason}", UserWarning, stacklevel=2)
        return AttachedMethods.attach(self, optimizer)

    @property
    def is_attached(self) -> bool:
        """True if the method is attached to an optimizer, or bound to a view."""
        return self._view is not None

    def is_attached_to(self, optimizer: torch.optim.Optimizer) -> bool:
        """Return True if the method is attached to ``optimizer``."""
        return self._view is not None and self.optimizer is optimizer

    def detach(self) -> None:
        """Detach the method from its optimizer, as the handle's ``remove()`` does."""
        AttachedMethods.of(self.optimizer).leave(self, self.optimizer)
        self._view, self.is_copy = None, False

    def check_parameters(self) -> None:
        """Raise a RuntimeError if a parameter was replaced in the optimizer or in the model. Runs before every step."""
        self.check_replaced(self._bound.group_of)

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Hook of ``attach``: raise a ValueError if ``optimizer`` does not suit the method. Does nothing by default."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_checked": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._view is not None:  # the optimizer was copied together with this method, and its copy has no hooks
            self.is_copy = True
            AttachedMethods.of(self.optimizer).join(self)

    def __copy__(self) -> Self:
        """Return a copy that decays the same parameters and is not attached."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__getstate__() | {"_view": None, "turn": None, "gradient_sums": GradientSums()})
        return twin

    def state_dict(self) -> dict[str, Any]:
        """Return the state that an exact resume needs, as plain types and tensors."""
        return {
            "strengths": [group["strength"] for group in self.groups],
            "updates": self.updates,
            "over_time": [schedule.state_dict() for schedule in self.over_time],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of ``state_dict()``. A ValueError if it has another number of groups or ``over_time``."""
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
