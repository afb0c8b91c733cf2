"""The contract of every weight decay method: which penalty, applied when, how strongly.

A method overrides the moments it needs; ``attach`` wires them to the step hooks of a torch optimizer, so a method works
in any training loop that calls ``optimizer.step()``. Its arithmetic is a pure function of tensors and scalars in the
method's own file; the class only says when it happens. How the strength changes over time is a thing of its own
(``over_time.py``) that every method takes.
"""

import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from wdlab.foreach import number_beside
from wdlab.homogeneous import weights
from wdlab.regularizers.checks import check_choice, check_strength
from wdlab.regularizers.over_time import OverTime

SCOPES = ("weights", "all")


class Handle:
    """What ``attach`` returns: ``remove()`` takes the method off the optimizer again. Also a context manager."""

    def __init__(self, remove: Callable[[], None]) -> None:
        self._remove: Callable[[], None] | None = remove

    def remove(self) -> None:
        """Detach. Calling it twice does nothing the second time."""
        if self._remove is not None:
            self._remove()
            self._remove = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class _Wiring:
    """The methods attached to one optimizer. They go through the moments of its steps together, each time in the order
    of their attachment."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.methods: list[Regularizer] = []
        self._outermost: FrameType | None = None  # torch's function that runs the hooks around the step under way
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> Self:
        """The optimizer's wiring, made when first asked for."""
        if not hasattr(optimizer, "_wdlab_wiring"):
            optimizer._wdlab_wiring = cls(optimizer)
        return optimizer._wdlab_wiring

    def _before(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> tuple | None:
        if _is_running(self._outermost):
            return None  # a subclass's step called that of its base, whose hooks torch runs as well
        self._outermost = _caller()
        if self.methods and getattr(optimizer, "grad_scale", None) is not None:
            raise RuntimeError(
                "the gradients are still scaled: call scaler.unscale_(optimizer) before scaler.step(optimizer)"
            )
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            if not _is_skipped(optimizer):
                go_before_the_step(self.methods)
            return None
        calls = itertools.count()

        def closure_then_moments() -> Any:
            if self.methods and next(calls):
                raise RuntimeError(
                    f"{type(optimizer).__name__} evaluates its closure several times in a step, which the methods "
                    "attached to it cannot follow: add the penalty to the loss instead"
                )
            loss = closure()
            go_before_the_step(self.methods)
            return loss

        return args[:1], {**kwargs, "closure": closure_then_moments}

    def _after(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if self._outermost is None or _caller() is self._outermost:
            self._outermost = None
            if not _is_skipped(optimizer):
                go_behind_the_step(self.methods)


def _caller() -> FrameType | None:
    """Who called the function that asks; None under torch.compile, which sees through a step as a whole."""
    return None if torch.compiler.is_compiling() else sys._getframe(2)


def _is_running(frame: FrameType | None) -> bool:
    """Whether a function is being executed that called, however indirectly, the one that asks."""
    caller = sys._getframe(1) if frame is not None else None
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is not None


def _is_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a GradScaler makes this step of a fused optimizer do nothing; other optimizers it does not call then."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())


@torch.no_grad()
def go_before_the_step(methods: "Sequence[Regularizer]") -> None:
    """Take methods of one optimizer through the moments between backward and the step, each moment for all of them."""
    for method in methods:
        for schedule in method.over_time:
            schedule.look(method)
    for method in methods:
        method.after_backward()
    for method in methods:
        method.before_step()


@torch.no_grad()
def go_behind_the_step(methods: "Sequence[Regularizer]") -> None:
    """Take methods of one optimizer through what comes behind the step."""
    for method in methods:
        method.after_step()
    for method in methods:
        method.updates += 1


class Part(NamedTuple):
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
        """
        check_choice("scope", scope, SCOPES)
        params = weights(model) if scope == "weights" else model.parameters()
        return cls([p for p in params if p.requires_grad], strength=strength, **options)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Decay more parameters from now on: ``{"params": [...], "strength": ...}``, as torch optimizers take them.

        Raises:
            ValueError: for parameters that are there already, that are complex, or (if this method is attached) that
                the optimizer does not hold; for a bad strength.
        """
        tensors = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        tensors = [p[1] if isinstance(p, tuple) else p for p in tensors]  # named parameters
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

    # -- what a step knows -----------------------------------------------------------------------------------------

    def parts(self) -> list[Part]:
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
                    lr = number_beside(params[0], optimizer_group["lr"])
                    found.append(Part(params, strength, lr, optimizer_group.get("maximize", False), group))
        return found

    def _in_force(self, group: dict[str, Any], optimizer_group: dict[str, Any], step: int) -> float | Tensor:
        strength = group["strength"]
        for schedule in self.over_time:
            strength = strength * schedule.factor(step, optimizer_group)
        return strength

    @property
    def _home(self) -> dict[int, dict[str, Any]]:
        """The optimizer's group of each parameter, by its id."""
        groups = () if self._optimizer is None else self._optimizer.param_groups
        return {id(p): group for group in groups for p in group["params"]}

    # -- wiring --------------------------------------------------------------------------------------------------

    def attach(self, optimizer: torch.optim.Optimizer) -> Handle:
        """Run this method's moments inside every ``optimizer.step()``, closures included.

        Several methods may be attached. They see the gradient of the loss alone first, then each moment is gone through
        in the order of their attachment.

        Returns:
            A handle whose ``remove()`` detaches the method.

        With a GradScaler, call ``scaler.unscale_(optimizer)`` before ``scaler.step(optimizer)``; a step that the scaler
        skips is skipped here too.

        Raises:
            ValueError: if the optimizer does not hold all of this method's parameters, or is of a kind that the method
                or its ``over_time`` cannot work with.
            RuntimeError: if this method is attached already; in a step, if its gradients are still scaled.
        """
        if self._optimizer is not None:
            raise RuntimeError(f"this {type(self).__name__} is already attached to an optimizer")
        _check_held(optimizer, self.params)
        self.check_optimizer(optimizer)
        for schedule in self.over_time:
            schedule.check_optimizer(optimizer)
        wiring = _Wiring.of(optimizer)
        for schedule in self.over_time:
            if schedule.looks and any(schedule is other for method in wiring.methods for other in method.over_time):
                raise ValueError(f"over_time: this {type(schedule).__name__} belongs to another method already")
        self._optimizer = optimizer
        wiring.methods.append(self)

        def remove() -> None:
            self._optimizer = None
            wiring.methods.remove(self)

        return Handle(remove)

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
