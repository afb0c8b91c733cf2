"""The attachment of weight decay methods to a torch optimizer, by the optimizer's step hooks.

A *step hook* is a function that torch calls before or after ``optimizer.step()``. The step hooks made here call the
*method's hooks* ``after_backward``, ``before_step`` and ``after_step``. Two properties of step hooks shape this file.
If a subclass's ``step`` calls its base class's ``step``, torch runs the step hooks twice, so the inner of two nested
steps is recognized by the call stack. If a step raises an error, torch does not call the step hooks that follow the
step, so nothing may depend on their call.
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
from wdlab.regularizers.views import OptimizerView, ParametersView
from wdlab.schedules import Clock


class Method(Protocol):
    """The attributes and methods of a ``Regularizer`` that this file uses."""

    over_time: tuple[OverTime, ...]
    params: list[Tensor]
    clock: Clock
    updates: int
    turn: int | None
    is_copy: bool
    gradient_sums: GradientSums

    def bind(self, view: ParametersView | None) -> None:
        """Act on the parameters of ``view`` from now on; None: on none."""

    @property
    def is_attached(self) -> bool:
        """True if the method is attached to an optimizer."""

    def is_attached_to(self, optimizer: torch.optim.Optimizer) -> bool:
        """Return True if the method is attached to ``optimizer``."""

    def detach(self) -> None:
        """Detach the method from its optimizer."""

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise a ValueError if the method cannot work with the optimizer."""

    def check_parameters(self) -> None:
        """Raise a RuntimeError if a parameter was replaced in the optimizer or in the model."""

    def after_backward(self) -> None:
        """Hook between backward and the step."""

    def before_step(self) -> None:
        """Hook right before the step, after ``after_backward`` of all methods."""

    def after_step(self) -> None:
        """Hook right after the step."""


class Handle:
    """The result of ``attach``. ``remove()``, or the end of a ``with`` block on the handle, detaches the method."""

    def __init__(self, method: Method, optimizer: torch.optim.Optimizer) -> None:
        # attributes, not a closure, so that a copy of the handle refers to the copies of the method and the optimizer
        self._method, self._optimizer = method, optimizer

    def remove(self) -> None:
        """Detach the method from the optimizer. Does nothing if the method is not attached to this optimizer."""
        if self._method.is_attached_to(self._optimizer):
            self._method.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class AttachedMethods:
    """The methods attached to one optimizer, and the step hooks that run them in the order of their attachment.

    The optimizer has its wiring as an attribute as long as a method is attached. A copy of an optimizer has no step
    hooks and no wiring; methods that are copied together with the optimizer are attached to its copy by ``join``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.methods: list[Method] = []
        self._idle = False  # True if no method acts in the current step
        # the frame of torch's function that runs the step hooks around the current step, the outermost if steps nest
        self._outermost: FrameType | None = None
        self._hooks = optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> Self:
        """Return the optimizer's wiring, after creating it if the optimizer has none."""
        if not hasattr(optimizer, "_wdlab_wiring"):
            optimizer._wdlab_wiring = cls(optimizer)
        return optimizer._wdlab_wiring

    @classmethod
    def attach(cls, method: Method, optimizer: torch.optim.Optimizer) -> Handle:
        """Attach a method to an optimizer, with the checks and errors of ``Regularizer.attach``."""
        kind = type(method).__name__
        if method.is_attached and not method.is_copy:
            raise RuntimeError(f"this {kind} is already attached to an optimizer")
        check_params_in_optimizer(optimizer, method.params)
        method.check_optimizer(optimizer)
        for schedule in method.over_time:
            schedule.check_method(method)
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
        """Add a method. A new method becomes the last; a copy of an attached method keeps the original's ``turn``."""
        if any(method is other for other in self.methods):
            return  # this optimizer's class copies its step hooks, and the copied wiring holds the method already
        if method.turn is None:
            method.turn = 1 + max((other.turn for other in self.methods), default=0)
        self.methods.append(method)
        self.methods.sort(key=lambda other: other.turn)

    def leave(self, method: Method, optimizer: torch.optim.Optimizer) -> None:
        """Remove a method. With the last method, remove the step hooks and the wiring from the optimizer.

        If the last method is removed during a step, the step hooks stay and do nothing.
        """
        self.methods.remove(method)
        method.turn = None
        if not self.methods and not _is_running(self._outermost):  # torch iterates over the step hooks during a step
            for hook in self._hooks:
                hook.remove()
            del optimizer._wdlab_wiring

    def _before(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> tuple | None:
        """Step hook before the step: check the methods, and run their ``after_backward`` and ``before_step``.

        With a closure, these two run inside the step, after the closure. They do not run again in a nested step, and
        not in a step that a GradScaler skips or that only fills the optimizer's state.

        Args:
            optimizer: the optimizer that takes the step.
            args: positional arguments of ``step``, of which the first is the optimizer.
            kwargs: keyword arguments of ``step``.

        Returns:
            If ``step`` got a closure: new arguments, with a closure that also runs the methods' hooks. Otherwise None.

        Raises:
            RuntimeError: if the gradients are still scaled by a GradScaler, or a parameter was replaced; inside the
                step, if the optimizer calls the closure several times.
        """
        if _is_running(self._outermost):
            return None  # a subclass's step called its base class's step, and torch ran the step hooks again
        self._outermost = _caller()
        if self.methods and getattr(optimizer, "grad_scale", None) is not None:
            raise RuntimeError(
                "the gradients are still scaled: call scaler.unscale_(optimizer) before scaler.step(optimizer)"
            )
        for method in self.methods:
            method.check_parameters()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._idle = not self.methods or _is_skipped(optimizer) or _only_fills_state(optimizer)
            if not self._idle:
                run_before_step(self.methods)
            return None
        self._idle = False
        calls = itertools.count()

        def closure_then_hooks() -> Any:
            if self.methods and next(calls):
                raise RuntimeError(
                    f"{type(optimizer).__name__} evaluates its closure several times in a step, which the methods "
                    "attached to it cannot follow: add the penalty to the loss instead"
                )
            loss = closure()
            run_before_step(self.methods)
            return loss

        return args[:1], {**kwargs, "closure": closure_then_hooks}

    def _after(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Step hook after the step: run the methods' ``after_step``, if ``_before`` ran their other hooks."""
        if self._outermost is None or _caller() is self._outermost:
            self._outermost = None
            if not self._idle:
                run_after_step(self.methods)


def _caller() -> FrameType | None:
    """Return the frame of the function that called this function's caller; None while torch.compile traces the step."""
    return None if torch.compiler.is_compiling() else sys._getframe(2)


def _is_running(frame: FrameType | None) -> bool:
    """Return True if ``frame`` is still on the call stack."""
    caller = sys._getframe(1) if frame is not None else None
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is not None


def _is_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Return True if a GradScaler makes this step of a fused optimizer do nothing.

    A GradScaler skips a step of other optimizers by not calling ``step``.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())


def _only_fills_state(optimizer: torch.optim.Optimizer) -> bool:
    """Return True for a dummy step that only fills the optimizer's state, as torch.distributed.checkpoint takes it.

    A dummy step is the optimizer's first, with learning rate 0 and all gradients 0. The gradients are compared with 0
    last, and only in a first step with learning rate 0, since the comparison waits for the device.
    """
    if any(optimizer.state.values()) or not all(_is_zero(group.get("lr")) for group in optimizer.param_groups):
        return False
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return bool(gradients) and not any(g.is_sparse or g.any() for g in gradients)


def _is_zero(lr: object) -> bool:
    """Return True if a learning rate is 0. False for a tensor that is not on the CPU, since reading it would wait."""
    return not (isinstance(lr, Tensor) and not lr.is_cpu) and lr == 0


@torch.no_grad()
def run_before_step(methods: Sequence[Method]) -> None:
    """Prepare a step: let every ``over_time`` read the gradients, then run ``after_backward``, then ``before_step``.

    Args:
        methods: all methods of one optimizer. Each hook is run for all methods before the next hook is run.
    """
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
    """Complete a step: restore ``p.grad`` to the gradient of the loss, run ``after_step``, count the update.

    Args:
        methods: all methods of one optimizer.
    """
    for method in reversed(methods):
        method.gradient_sums.give_back()
    for method in methods:
        method.after_step()
    for method in methods:
        method.updates += 1


def check_params_in_optimizer(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> None:
    """Raise a ValueError unless the optimizer holds all of ``params``."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = sum(id(p) not in held for p in params)
    if missing:
        raise ValueError(f"{missing} of {len(params)} parameters are not in the optimizer")
