"""The attachment of methods to a torch optimizer, by its step hooks.

Two properties of torch's hooks shape this file. Where a subclass's ``step`` calls the ``step`` of its base class, torch
runs the hooks twice, so the inner of two nested steps is recognized by the call stack. A step that raises an error
never reaches the hooks after it, so nothing may depend on them having run.
"""

import itertools
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from wdlab.regularizers.gradient_sums import GradientSums
from wdlab.regularizers.over_time import OverTime
from wdlab.regularizers.views import OptimizerView, View
from wdlab.schedules import Clock


class Method(Protocol):
    """The part of a ``Regularizer`` that its attachment uses."""

    over_time: tuple[OverTime, ...]
    params: list[Tensor]
    clock: Clock
    updates: int
    turn: int | None
    is_copy: bool
    gradient_sums: GradientSums

    def bind(self, view: View | None) -> None:
        """Act on the parameters of a view."""

    @property
    def is_attached(self) -> bool:
        """True if the method acts in the steps of an optimizer."""

    def is_attached_to(self, optimizer: torch.optim.Optimizer) -> bool:
        """Return True if the method acts in this optimizer's steps."""

    def detach(self) -> None:
        """Take the method off its optimizer."""

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise a ValueError if the method cannot work with the optimizer."""

    def check_parameters(self) -> None:
        """Raise a RuntimeError if a parameter was replaced."""

    def after_backward(self) -> None:
        """Called between backward and the step."""

    def before_step(self) -> None:
        """Called right before the step."""

    def after_step(self) -> None:
        """Called right after the step."""


class Handle:
    """The result of ``attach``: ``remove()`` takes the method off the optimizer again. Also a context manager."""

    def __init__(self, method: Method, optimizer: torch.optim.Optimizer) -> None:
        self._method, self._optimizer = method, optimizer  # no closure, so that a copy refers to copies

    def remove(self) -> None:
        """Detach. Calling it twice does nothing the second time."""
        if self._method.is_attached_to(self._optimizer):
            self._method.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class Wiring:
    """The methods attached to one optimizer, which run in its steps in the order of their attachment.

    The optimizer holds it as long as a method is attached. A copy of an optimizer has no hooks and no wiring; methods
    that are copied together with it come back by ``join``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.methods: list[Method] = []
        self._idle = False  # whether the current step is left to the optimizer alone
        self._outermost: FrameType | None = None  # torch's function that runs the hooks around the current step
        self._hooks = optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> Self:
        """Return the optimizer's wiring, which is made where there is none."""
        if not hasattr(optimizer, "_wdlab_wiring"):
            optimizer._wdlab_wiring = cls(optimizer)
        return optimizer._wdlab_wiring

    @classmethod
    def attach(cls, method: Method, optimizer: torch.optim.Optimizer) -> Handle:
        """Attach a method, see ``Regularizer.attach``."""
        kind = type(method).__name__
        if method.is_attached and not method.is_copy:
            raise RuntimeError(f"this {kind} is already attached to an optimizer")
        check_held(optimizer, method.params)
        method.check_optimizer(optimizer)
        for schedule in method.over_time:
            schedule.check(optimizer, method.clock)
        attached = optimizer._wdlab_wiring.methods if hasattr(optimizer, "_wdlab_wiring") else []
        others = [schedule for other in attached if other is not method for schedule in other.over_time]
        for schedule in method.over_time:
            if schedule.observes_gradients and any(schedule is other for other in others):
                raise ValueError(f"over_time: this {type(schedule).__name__} belongs to another method already")
        if method.is_attached:
            method.detach()
        method.bind(OptimizerView(optimizer, kind))
        cls.of(optimizer).join(method)
        return Handle(method, optimizer)

    def join(self, method: Method) -> None:
        """Add a method: at the end, or at its place in the optimizer that this one is a copy of."""
        if any(method is other for other in self.methods):
            return  # the class of the optimizer copies its hooks
        if method.turn is None:
            method.turn = 1 + max((other.turn for other in self.methods), default=0)
        self.methods.append(method)
        self.methods.sort(key=lambda other: other.turn)

    def leave(self, method: Method, optimizer: torch.optim.Optimizer) -> None:
        """Remove a method. After the last one the optimizer is as it was, without these hooks."""
        self.methods.remove(method)
        method.turn = None
        if not self.methods and not _is_running(self._outermost):  # torch goes through its hooks during a step
            for hook in self._hooks:
                hook.remove()
            del optimizer._wdlab_wiring

    def _before(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> tuple | None:
        if _is_running(self._outermost):
            return None  # a subclass's step called that of its base, whose hooks torch runs as well
        self._outermost = _caller()
        if self.methods and getattr(optimizer, "grad_scale", None) is not None:
            raise RuntimeError(
                "the gradients are still scaled: call scaler.unscale_(optimizer) before scaler.step(optimizer)"
            )
        for method in self.methods:
            method.check_parameters()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._idle = not self.methods or _is_skipped(optimizer) or _is_for_a_template(optimizer)
            if not self._idle:
                run_before_step(self.methods)
            return None
        self._idle = False
        calls = itertools.count()

        def closure_then_moments() -> Any:
            if self.methods and next(calls):
                raise RuntimeError(
                    f"{type(optimizer).__name__} evaluates its closure several times in a step, which the methods "
                    "attached to it cannot follow: add the penalty to the loss instead"
                )
            loss = closure()
            run_before_step(self.methods)
            return loss

        return args[:1], {**kwargs, "closure": closure_then_moments}

    def _after(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if self._outermost is None or _caller() is self._outermost:
            self._outermost = None
            if not self._idle:
                run_after_step(self.methods)


def _caller() -> FrameType | None:
    """Return the caller's caller's frame, or None while torch.compile traces the step."""
    return None if torch.compiler.is_compiling() else sys._getframe(2)


def _is_running(frame: FrameType | None) -> bool:
    """Return True if ``frame`` is still on the call stack."""
    caller = sys._getframe(1) if frame is not None else None
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is not None


def _is_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Return True if a GradScaler makes this step of a fused optimizer do nothing; it does not call others then."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())


def _is_for_a_template(optimizer: torch.optim.Optimizer) -> bool:
    """Return True for a step that only makes an optimizer fill its state, as torch.distributed.checkpoint takes one.

    It is the first, at learning rate 0, and all gradients are 0. That they are is read only where the rest holds, since
    it waits for the device.
    """
    if any(optimizer.state.values()) or not all(_is_zero(group.get("lr")) for group in optimizer.param_groups):
        return False
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return bool(gradients) and not any(g.is_sparse or g.any() for g in gradients)


def _is_zero(lr: object) -> bool:
    """Return True for a learning rate of 0, unless it is on a device."""
    return not (isinstance(lr, Tensor) and not lr.is_cpu) and lr == 0


@torch.no_grad()
def run_before_step(methods: Sequence[Method]) -> None:
    """Run the moments between backward and the step, each moment for all methods of one optimizer."""
    for method in reversed(methods):
        method.gradient_sums.give_back(stale=True)
    for method in methods:
        for schedule in method.over_time:
            schedule.observe(method)
    for method in methods:
        method.after_backward()
    for method in methods:
        method.before_step()


@torch.no_grad()
def run_after_step(methods: Sequence[Method]) -> None:
    """Run the moment after the step for all methods of one optimizer."""
    for method in reversed(methods):
        method.gradient_sums.give_back()
    for method in methods:
        method.after_step()
    for method in methods:
        method.updates += 1


def check_held(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> None:
    """Raise a ValueError unless the optimizer holds all of ``params``."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = sum(id(p) not in held for p in params)
    if missing:
        raise ValueError(f"{missing} of {len(params)} parameters are not in the optimizer")
