"""Factors on the strength of a method that change over time.

``L1(params, 1e-3, over_time=Early(epochs=5, steps_per_epoch=391))``; several factors multiply. Those in this file count
updates: ``Early``, ``Late``, ``Delayed``, ``WarmUp``, and ``FollowSchedule`` for any function of ``wdlab.schedules``.
Factors that depend on the gradients are ``CoherenceGate`` (P3, in ``coherent.py``) and ``GradientScale`` (P5, in
``gradient_scale.py``).
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from wdlab import schedules
from wdlab.regularizers.checks import check_number
from wdlab.regularizers.views import Section
from wdlab.schedules import Clock


class Observed(Protocol):
    """The part of a method that an ``OverTime`` may read."""

    params: list[Tensor]

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that the method is attached to."""

    def sections(self) -> list[Section]:
        """Return the parameters with a gradient, by group of the method and of the optimizer."""

    def penalty_gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradient of the penalty by each of ``params``."""


class OverTime:
    """A constant strength, and the base of every way to change it: a factor for each step."""

    observes_gradients = False  # True if it keeps something of one method's gradients, and so cannot serve two
    stackable: ClassVar[bool] = True  # whether one factor holds for all runs of a stack; each class declares its own
    is_always_zero = False  # True if the factor is 0 in every step, whatever happens

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def check(self, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
        """Raise a ValueError if this cannot work with the optimizer, or lacks a length that it needs."""

    def observe(self, method: Observed) -> None:
        """Read the gradients of the loss, which alone are in ``p.grad``. Called before a step changes anything."""

    def factor(self, step: int, optimizer_group: dict[str, Any], clock: Clock = Clock()) -> float | Tensor:  # noqa: B008
        """Return the factor on the strength of the next update.

        Args:
            step: number of updates already made under the method.
            optimizer_group: the optimizer's group of the parameters; empty while the method is not attached.
            clock: the length of the run and of an epoch.

        Returns:
            A number, or a scalar tensor if it depends on the gradients. It is 1 before the first ``observe``.
        """
        return 1.0

    def obstacle_to_stacking(self, optimizer: torch.optim.Optimizer) -> str | None:
        """Return why the factor is not the same for all runs of a stack; None if it is."""
        if vars(type(self)).get("stackable", False):
            return None
        return f"{type(self).__name__} takes its strength from the gradients of one run"

    def metrics(self) -> dict[str, Tensor]:
        """Return what is logged of the last step, scalar tensors by their names."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a ``state_dict()``."""


class FollowSchedule(OverTime):
    """Any schedule of ``wdlab.schedules`` as a factor on the strength, for example a cosine.

    Args:
        schedule: ``(step, steps, steps_per_epoch) -> factor``. Further options are bound by ``functools.partial``.
        steps_per_epoch: length of an epoch in updates; None to take it from the method's ``clock``, which
            ``wdlab.train`` sets.
    """

    stackable = True

    def __init__(self, schedule: Callable[..., float], steps_per_epoch: int | None = None) -> None:
        if not callable(schedule):
            raise ValueError(f"schedule={schedule!r}: must be a function of step, steps and steps_per_epoch")
        self.schedule, self.steps_per_epoch = schedule, steps_per_epoch

    def __repr__(self) -> str:
        named = self.schedule.func if isinstance(self.schedule, functools.partial) else self.schedule
        return f"{type(self).__name__}({getattr(named, '__name__', named)})"

    def check(self, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
        if clock.steps is None or self._epoch(clock) is None:
            raise ValueError(f"{self!r}: needs the length of the run; set the method's clock to Clock(steps, ...)")
        self.factor(0, {}, clock)

    def factor(self, step: int, optimizer_group: dict[str, Any], clock: Clock = Clock()) -> float:  # noqa: B008
        return self.schedule(step, clock.steps, self._epoch(clock))

    def _epoch(self, clock: Clock) -> int | None:
        return clock.steps_per_epoch if self.steps_per_epoch is None else self.steps_per_epoch


class _OfALength(FollowSchedule):
    """A schedule with a length, given in epochs or in steps.

    Args:
        epochs, steps: the length; exactly one of them, >= 0.
        steps_per_epoch: as in :class:`FollowSchedule`; needed if the length is in epochs.

    Raises:
        ValueError: for none or both of the lengths, or a bad one.
    """

    function = staticmethod(schedules.early)

    def __init__(
        self, epochs: float | None = None, steps: float | None = None, steps_per_epoch: int | None = None
    ) -> None:
        if (epochs is None) == (steps is None):
            raise ValueError(f"epochs={epochs}, steps={steps}: give exactly one of them")
        self.epochs = None if epochs is None else check_number("epochs", epochs, lowest=0.0)
        self.steps = None if steps is None else check_number("steps", steps, lowest=0.0)
        super().__init__(functools.partial(self.function, epochs=self.epochs, updates=self.steps), steps_per_epoch)

    def __repr__(self) -> str:
        length = f"epochs={self.epochs:g}" if self.steps is None else f"steps={self.steps:g}"
        return f"{type(self).__name__}({length})"

    def check(self, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
        self.factor(0, {}, clock)


class Early(_OfALength):
    """The full strength for the first ``epochs`` or ``steps``, then none (P4).

    [grade B]
    """

    stackable = True

    @property
    def is_always_zero(self) -> bool:
        """True for a length of 0."""
        return 0 in (self.epochs, self.steps)


class Delayed(_OfALength):
    """No strength for the first ``epochs`` or ``steps``, then the full one (P3, the delayed form).

    [grade B]
    """

    stackable = True
    function = staticmethod(schedules.delayed)


class Late(Delayed):
    """``Delayed`` under the name that P4 has for it: decay switched on late.

    [grade B]
    """

    stackable = True


class WarmUp(_OfALength):
    """A strength that grows linearly over the first ``epochs`` or ``steps``, as a learning rate's warm-up does."""

    stackable = True
    function = staticmethod(schedules.warm_up)


def check_over_time(over_time: OverTime | Iterable[OverTime] | None) -> tuple[OverTime, ...]:
    """Return ``over_time`` as a tuple; raise a ValueError for anything in it that is not an ``OverTime``."""
    if over_time is None:
        return ()
    several = isinstance(over_time, Iterable) and not isinstance(over_time, str | dict)
    found = tuple(over_time) if several else (over_time,)
    for schedule in found:
        if not isinstance(schedule, OverTime):
            raise ValueError(f"over_time={schedule!r}: must be an OverTime; in a config, regularizer/over_time=early")
    return found


def on_device(state: Any, device: torch.device) -> Any:
    """Return a nested state with its tensors on ``device``; checkpoints are read on the CPU."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: on_device(value, device) for key, value in state.items()}
    return [on_device(value, device) for value in state] if isinstance(state, list) else state
