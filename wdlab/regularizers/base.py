"""The contract of every weight decay method: which penalty, applied when, how strongly.

A method overrides the moments it needs; ``attach`` wires them to the step hooks of a torch optimizer, so a method works
in any training loop that calls ``optimizer.step()``. Its arithmetic is a pure function of tensors and scalars in the
method's own file; the class only says when it happens. How the strength changes over time is a thing of its own
(``over_time.py``) that every method takes.
"""

import operator
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from wdlab.homogeneous import weights
from wdlab.regularizers.checks import check_choice, check_strength
from wdlab.regularizers.description import Row, describe
from wdlab.regularizers.hooks import Handle, Wiring
from wdlab.regularizers.over_time import OverTime
from wdlab.tensors import add_, is_per_run, is_sharded, local_shards, scalar_for

SCOPES = ("weights", "all")


class Location(NamedTuple):
    """Where in a model a parameter was found."""

    name: str  # in full
    module: nn.Module
    attribute: str
    tensor: Tensor


class Seen(NamedTuple):
    """The groups of an optimizer, when they were last gone through."""

    groups: list[dict[str, Any]]
    params: list[list[Tensor]]
    home: dict[int, dict[str, Any]]


class ActiveGroup(NamedTuple):
    """Parameters that one strength and one learning rate are in force for, in this step."""

    params: list[Tensor]
    strength: float | Tensor
    lr: float | Tensor
    maximize: bool  # what the optimizer does
    group: dict[str, Any]


class Regularizer:
    """No regularization, and the base of every method.

    Args:
        params: tensors or named tensors to decay, or dicts ``{"params": [...], "strength": ...}``, as for torch
            optimizers.
        strength: s in ``L(train) + s * R(w)``, for groups that do not give their own. 0 switches the method off: the
            optimizer's steps are then bit-identical to those without it.
        over_time: what the strength is multiplied by from step to step: an ``OverTime`` (``Early``, ``Delayed``,
            ``WarmUp``, ``CoherenceGate``, ``GradientScale`` ...), or several, whose factors multiply.

    Raises:
        ValueError: for a strength that is negative or not finite, an empty or repeated parameter list, a complex
            parameter.
    """

    times_lr = True  # whether the decay of a step is multiplied by the learning rate

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        strength: float = 0.0,
        over_time: OverTime | Iterable[OverTime] | None = None,
    ) -> None:
        self.default_strength = check_strength(strength)
        self.over_time = check_over_time(over_time)
        self.updates = 0  # steps made under this method: the clock of its strength
        self._optimizer: torch.optim.Optimizer | None = None
        self.turn: int | None = None  # among the methods of its optimizer
        self.lent: list[tuple[Tensor, Tensor, Tensor, int]] = []  # in a step, by ``add_to_gradients``
        self._seen: Seen | None = None
        self._checked: dict | None = None  # the ``home`` that all parameters were found in
        self._sums: dict[int, Tensor] = {}  # where on the CPU they are written, by the parameter's id
        self._locations: list[Location] = []
        self._warned = self._is_copy = False
        self.groups: list[dict[str, Any]] = []
        entries = [params] if isinstance(params, Tensor | dict) else list(params)
        if not entries:
            raise ValueError("params: got an empty list")
        for entry in entries if isinstance(entries[0], dict) else [{"params": entries}]:
            self.add_param_group(entry)

    @classmethod
    def for_model(cls, model: nn.Module, strength: float = 0.0, scope: str = "weights", **options: Any) -> Self:
        """The method on a whole model, as the YAML files in ``configs/regularizer`` name it.

        ``scope`` is ``weights`` (see ``wdlab.homogeneous.weights``) or ``all``; frozen parameters are left out.

        Raises:
            ValueError: for an unknown scope; for a strength that would decay nothing, because everything in the scope
                is frozen or ``over_time`` is 0 in every step.
        """
        check_choice("scope", scope, SCOPES)
        params = [p for p in (weights(model) if scope == "weights" else model.parameters()) if p.requires_grad]
        if not params:
            raise ValueError(f"scope={scope}: nothing to decay, all of it is frozen in {type(model).__name__}")
        return cls(params, strength=strength, **options)._made_for(model)

    def _made_for(self, model: nn.Module) -> Self:
        """Remember where in the model the parameters are, and check that something will be decayed."""
        own = {id(p) for p in self.params}
        self._locations = [
            Location(f"{path}.{name}".lstrip("."), module, name, p)
            for path, module in model.named_modules()
            for name, p in module.named_parameters(recurse=False)
            if id(p) in own
        ]
        if reason := self._reason_to_be_idle():
            raise ValueError(f"strength={self.strength}: would decay nothing, {reason}; strength=0 is without decay")
        return self

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Decay more parameters from now on: ``{"params": [...], "strength": ...}``, as torch optimizers take them.

        Raises:
            ValueError: for parameters that are there already, that are complex, or (if this method is attached) that
                the optimizer does not hold; for a bad strength.
        """
        tensors = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        if any(isinstance(p, tuple) for p in tensors):
            group = {**group, "param_names": [name for name, _ in tensors]}
            tensors = [p for _, p in tensors]
        if not tensors:
            raise ValueError("params: got an empty list")
        strength = check_strength(group.get("strength", self.default_strength))
        if any(p.is_complex() for p in tensors):
            raise ValueError(f"params: {type(self).__name__} does not decay complex parameters")
        known = [id(p) for p in (*self.params, *tensors)]
        if len(set(known)) != len(known):
            raise ValueError("params: a parameter appears more than once")
        if self._optimizer is not None:
            _check_held(self._optimizer, tensors)
        self.groups.append({**group, "params": tensors, "strength": strength})

    @property
    def params(self) -> list[Tensor]:
        """All parameters this method acts on."""
        return [p for group in self.groups for p in group["params"]]

    @property
    def strength(self) -> float:
        """The strength of the first group as it was given; what is made of it over time is ``strength_in_force``."""
        return self.groups[0]["strength"]

    @property
    def strength_in_force(self) -> float:
        """The strength of the first group in the last step (before the first one: as far as the clock alone says)."""
        return float(self.strength_on_device)

    @property
    def strength_on_device(self) -> float | Tensor:
        """The same without waiting for the device: a scalar tensor if it comes from the data."""
        home = self._home.get(id(self.params[0]), {})
        return self._in_force(self.groups[0], home, max(0, self.updates - 1))

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

    def _rows(self) -> list[Row]:
        """The tensors in the order of ``params``, for ``describe``."""
        names = {id(location.tensor): location.name for location in reversed(self._locations)}
        rows = []
        for group in self.groups:
            given = group.get("param_names", [""] * len(group["params"]))
            for p, name in zip(group["params"], given, strict=True):
                rows.append(Row(p, group["strength"], name or names.get(id(p), "")))
        return rows

    def _reason_to_be_idle(self) -> str | None:
        """Why a strength that is not 0 decays nothing; None if it does, or if there is no such strength."""
        if all(group["strength"] == 0 for group in self.groups):
            return None
        if not any(p.requires_grad for group in self.groups if group["strength"] != 0 for p in group["params"]):
            return "all its parameters are frozen"
        zero = [schedule for schedule in self.over_time if schedule.is_always_zero]
        return f"over_time={zero[0]!r} is 0 in every step" if zero else None

    # -- the moments of a step, in order; gradients are not recorded in any of them ------------------------------------

    def after_backward(self) -> None:
        """Gradients of the loss are in ``p.grad``: add to them, or look at them."""

    def before_step(self) -> None:
        """Weights are still old: remember what the decay needs of them."""

    def after_step(self) -> None:
        """Weights are new: decay, shrink, project."""

    def penalty(self) -> Tensor:
        """``s * R(w)`` now, for the strengths as given; a scalar tensor on the parameters' device."""
        return torch.zeros((), device=self.params[0].device)

    def penalty_gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of ``R`` by each of ``params``, in their shapes. Not to be written to."""
        return [torch.zeros_like(p) for p in params]

    def add_to_gradients(self, params: Sequence[Tensor], addends: Sequence[Tensor], factor: float | Tensor) -> None:
        """Add ``factor * addend`` to each gradient for the duration of the step: ``p.grad`` becomes the sum.

        The sums take as much memory as the gradients. On the CPU they have the same place in every step: to get a new
        one would take longer than the sum, a quarter of a step for an MLP of 3 x 2000; so it is 2 %.

        Args:
            params: with gradients.
            addends: of their shapes; of sharded parameters the local shards.
            factor: a number, a scalar tensor, or a number for each run of a stack. A stack's gradients are changed in
                place, and so are all of them under torch.compile.
        """
        if is_per_run(factor) or torch.compiler.is_compiling():
            add_(local_shards([p.grad for p in params]), addends, factor)
            return
        gradients = [p.grad for p in params]
        if any(map(is_sharded, gradients)):
            sums = [gradient.clone() for gradient in gradients]
            add_(local_shards(sums), addends, factor)
        elif all(p.is_cpu for p in params):
            places = self._places_of_sums(params, gradients)
            if isinstance(factor, Tensor):
                addends, factor = torch._foreach_mul(addends, factor), 1
            sums = [torch.add(g, r, alpha=factor, out=t) for g, r, t in zip(gradients, addends, places, strict=True)]
        elif isinstance(factor, Tensor):
            sums = torch._foreach_add(gradients, torch._foreach_mul(addends, factor))
        else:
            sums = torch._foreach_add(gradients, addends, alpha=factor)
        for p, gradient, total in zip(params, gradients, sums, strict=True):
            p.grad = total
            self.lent.append((p, gradient, total, total._version))

    def _places_of_sums(self, params: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        places = [self._sums.get(id(p)) for p in params]
        for i, (p, gradient, place) in enumerate(zip(params, gradients, places, strict=True)):
            if place is None or place.dtype is not gradient.dtype or place.stride() != p.stride():
                places[i] = self._sums[id(p)] = torch.empty_like(p, dtype=gradient.dtype)
        return places

    # -- what a step knows -----------------------------------------------------------------------------------------

    def active_groups(self) -> list[ActiveGroup]:
        """What is to be regularized in this step, by strength and learning rate in force.

        Parameters without a gradient are left out, and everything whose strength is 0 at the moment. A strength that
        comes from the data (a gate, the gradient scale) is a scalar tensor and may be 0 without anyone knowing.

        Raises:
            RuntimeError: for a sparse gradient.
        """
        home, found = self._home, []
        for group in self.groups:
            if group["strength"] == 0:
                continue
            by_home: dict[int, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    if p.grad.is_sparse:
                        raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
                    by_home.setdefault(id(home[id(p)]), []).append(p)
            for params in by_home.values():
                optimizer_group = home[id(params[0])]
                strength = self._in_force(group, optimizer_group, self.updates)
                if isinstance(strength, Tensor) or strength != 0:
                    lr = scalar_for(params[0], optimizer_group["lr"])
                    found.append(ActiveGroup(params, strength, lr, optimizer_group.get("maximize", False), group))
        return found

    def _in_force(self, group: dict[str, Any], optimizer_group: dict[str, Any], step: int) -> float | Tensor:
        strength = group["strength"]
        for schedule in self.over_time:
            strength = strength * schedule.factor(step, optimizer_group)
        return strength

    @property
    def _home(self) -> dict[int, dict[str, Any]]:
        """The optimizer's group of each parameter, by its id; the same dict while the groups are the same."""
        groups = [] if self._optimizer is None else self._optimizer.param_groups
        seen = self._seen
        if seen is None or not _are(seen.groups, groups) or not all(map(_are, seen.params, _lists(groups))):
            home = {id(p): group for group in groups for p in group["params"]}
            seen = self._seen = Seen(list(groups), [list(params) for params in _lists(groups)], home)
        return seen.home

    # -- wiring --------------------------------------------------------------------------------------------------

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
        if self._optimizer is not None and not self._is_copy:
            raise RuntimeError(f"this {type(self).__name__} is already attached to an optimizer")
        _check_held(optimizer, self.params)
        self.check_optimizer(optimizer)
        for schedule in self.over_time:
            schedule.check_optimizer(optimizer)
        if (reason := self._reason_to_be_idle()) and not self._warned:
            self._warned = True
            warnings.warn(f"{type(self).__name__} decays nothing: {reason}", UserWarning, stacklevel=2)
        wiring = Wiring.of(optimizer)
        for schedule in self.over_time:
            others = [other for method in wiring.methods if method is not self for other in method.over_time]
            if schedule.observes_gradients and any(schedule is other for other in others):
                raise ValueError(f"over_time: this {type(schedule).__name__} belongs to another method already")
        if self._optimizer is not None:
            self.detach()
        self._optimizer = optimizer
        wiring.join(self)
        return Handle(self, optimizer)

    def is_attached_to(self, optimizer: torch.optim.Optimizer) -> bool:
        """Return True if the method acts in this optimizer's steps."""
        return self._optimizer is optimizer

    def detach(self) -> None:
        """Take the method off its optimizer, as the handle's ``remove()`` does."""
        Wiring.of(self.optimizer).leave(self)
        self._optimizer, self._is_copy = None, False

    def check_parameters(self) -> None:
        """Check that the parameters are still those of the optimizer and of the model; called before every step.

        While nothing has changed it takes a few microseconds.

        Raises:
            RuntimeError: if one was replaced, since the new one would not be decayed.
        """
        home = self._home
        if home is self._checked and not self._replaced():
            return
        if all(group["strength"] == 0 for group in self.groups):
            return
        rows = [row for row in self._rows() if row.strength != 0 and id(row.tensor) not in home]
        names = [row.name or f"one of shape {tuple(row.tensor.shape)}" for row in rows]
        lost = [f"{name} is not in the optimizer any more" for name in names]
        lost += [f"{name} is another parameter now" for name in self._replaced()]
        if lost:
            kind = type(self).__name__
            raise RuntimeError(
                f"{kind}: {lost[0]}{f' (and {len(lost) - 1} more)' if len(lost) > 1 else ''}. Take this method off "
                f"(handle.remove()), make a new {kind} with the parameters of now, and attach it"
            )
        self._checked = home

    def _replaced(self) -> list[str]:
        """The names of the parameters in whose places in the model there are others now."""
        found = ((location, location.module._parameters.get(location.attribute)) for location in self._locations)
        return [location.name for location, now in found if now is not None and now is not location.tensor]

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise a ValueError if this method cannot work with the optimizer, or with its parameters as they are now."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer this method is attached to."""
        assert self._optimizer is not None, "only in the moments of a step"
        return self._optimizer

    def set_steps_per_epoch(self, steps_per_epoch: int) -> None:
        """Tell ``over_time`` how many updates an epoch has, for lengths given in epochs."""
        for schedule in self.over_time:
            schedule.steps_per_epoch = steps_per_epoch

    # -- copies -----------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"lent": [], "_sums": {}, "_seen": None, "_checked": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._optimizer is not None:  # a copy too, to which no hook came along
            self._is_copy = True
            Wiring.of(self._optimizer).join(self)

    def __copy__(self) -> Self:
        """A method on the same parameters, attached to nothing."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__getstate__() | {"_optimizer": None, "turn": None})
        return twin

    # -- exact resume --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs, as plain types and tensors."""
        return {
            "strengths": [group["strength"] for group in self.groups],
            "updates": self.updates,
            "over_time": [schedule.state_dict() for schedule in self.over_time],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a ``state_dict()``.

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
            schedule.load_state_dict(_moved(saved, self.params[0].device))
        self.updates = state.get("updates", 0)


def _moved(state: Any, device: torch.device) -> Any:
    """A nested state with its tensors on ``device``: checkpoints are read on the CPU."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: _moved(value, device) for key, value in state.items()}
    return [_moved(value, device) for value in state] if isinstance(state, list) else state


def _are(some: Sequence, others: Sequence) -> bool:
    """Return True if two lists hold the very same things."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _lists(groups: Iterable[dict[str, Any]]) -> list[list[Tensor]]:
    return [group["params"] for group in groups]


def _check_held(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = sum(id(p) not in held for p in params)
    if missing:
        raise ValueError(f"{missing} of {len(params)} parameters are not in the optimizer")


def check_over_time(over_time: OverTime | Iterable[OverTime] | None) -> tuple[OverTime, ...]:
    """As a tuple; a ValueError for anything that is not an ``OverTime``."""
    if over_time is None:
        return ()
    several = isinstance(over_time, Iterable) and not isinstance(over_time, str | dict)
    found = tuple(over_time) if several else (over_time,)
    for schedule in found:
        if not isinstance(schedule, OverTime):
            raise ValueError(f"over_time={schedule!r}: must be an OverTime; in a config, regularizer/over_time=early")
    return found
