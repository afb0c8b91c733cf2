"""How methods take part in the steps of a torch optimizer, through its step hooks.

Two things are not as they seem there. Torch runs the hooks of an optimizer twice where a subclass's ``step`` calls that
of its base class, so the inner of two nested steps is told apart by the call stack. And a step that raises an error
never reaches the hooks after it, so nothing may depend on them having run.
"""

import itertools
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from wdlab.regularizers.base import Regularizer


class Handle:
    """What ``attach`` returns: ``remove()`` takes the method off the optimizer again. Also a context manager."""

    def __init__(self, method: "Regularizer", optimizer: torch.optim.Optimizer) -> None:
        self._method, self._optimizer = method, optimizer  # no function, so that it is copied with its method

    def remove(self) -> None:
        """Detach. Calling it twice does nothing the second time."""
        if self._method.is_attached_to(self._optimizer):
            self._method.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class Wiring:
    """The methods attached to one optimizer. They go through the moments of its steps together, each time in the order
    of their attachment.

    A copy of an optimizer has no hooks, and so none of this; methods that are copied with it come back by ``join``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.methods: list[Regularizer] = []
        self._idle = False  # the step under way is none of the methods
        self._outermost: FrameType | None = None  # torch's function that runs the hooks around the step under way
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> Self:
        """The optimizer's wiring, made when first asked for."""
        if not hasattr(optimizer, "_wdlab_wiring"):
            optimizer._wdlab_wiring = cls(optimizer)
        return optimizer._wdlab_wiring

    def join(self, method: "Regularizer") -> None:
        """Take a method in, at the end unless it had its turn before, in the optimizer that this one is a copy of."""
        if any(method is other for other in self.methods):
            return  # the optimizer's class copies its hooks after all
        if method.turn is None:
            method.turn = 1 + max((other.turn for other in self.methods), default=0)
        self.methods.append(method)
        self.methods.sort(key=lambda other: other.turn)

    def leave(self, method: "Regularizer") -> None:
        """Leave a method out from now on."""
        self.methods.remove(method)
        method.turn = None

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
def run_before_step(methods: "Sequence[Regularizer]") -> None:
    """Take methods of one optimizer through the moments between backward and the step, each moment for all of them."""
    give_back_gradients(methods, stale=True)
    for method in methods:
        for schedule in method.over_time:
            schedule.observe(method)
    for method in methods:
        method.after_backward()
    for method in methods:
        method.before_step()


@torch.no_grad()
def run_after_step(methods: "Sequence[Regularizer]") -> None:
    """Take methods of one optimizer through what comes after the step."""
    give_back_gradients(methods)
    for method in methods:
        method.after_step()
    for method in methods:
        method.updates += 1


def give_back_gradients(methods: "Sequence[Regularizer]", stale: bool = False) -> None:
    """Put the gradients of the loss back where methods had put a sum with that of a penalty.

    Args:
        methods: of one optimizer.
        stale: the sums were left by a step that raised an error. One that was written to since is kept.
    """
    for method in reversed(methods):
        for p, gradient, total, version in reversed(method.lent):
            if p.grad is total and not (stale and total._version != version):
                p.grad = gradient
        method.lent.clear()
