"""How methods take part in the steps of a torch optimizer, through its step hooks.

Two things are not as they seem there. Torch runs the hooks of an optimizer twice where a subclass's ``step`` calls that
of its base class, so the inner of two nested steps is told apart by the call stack. And a step that raises an error
never reaches the hooks after it, so nothing may depend on them having run.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from wdlab.regularizers.base import Regularizer


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


class Wiring:
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
    """Take methods of one optimizer through what comes after the step."""
    for method in methods:
        method.after_step()
    for method in methods:
        method.updates += 1
