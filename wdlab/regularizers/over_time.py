"""Factors on the strength of a method that change over time.

For example ``L1(params, 1e-3, over_time=Early(epochs=5, steps_per_epoch=391))``. A method multiplies several factors.
The factors in this file depend on the number of updates: ``Early``, ``Late``, ``Delayed``, ``WarmUp``, and
``ScheduleFactor`` for any function of ``wdlab.schedules``. The factors ``CoherenceGate`` (P3, in ``coherent.py``) and
``GradientScale`` (P5, in ``gradient_scale.py``) depend on the gradients, ``Corrected`` and ``Independent`` (in
``peak_rate.py``) on the learning rate.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from wdlab import schedules
from wdlab.regularizers.checks import check_number
from wdlab.regularizers.views import GradientSection, ParametersView
from wdlab.schedules import Clock


class ObservedMethod(Protocol):
    """The attributes and methods of a weight decay method that an ``OverTime`` may use."""

    params: list[Tensor]
    times_lr: ClassVar[bool]  # True if the decay of a step is multiplied by the learning rate
    tensors: list[Tensor]  # the tensors that the method acts on: ``params``, or in their place the tensors of a stack
    view: ParametersView
    clock: Clock

    @property
    def is_attached(self) -> bool:
        """True if the method is attached to an optimizer."""

    @property
    def is_off(self) -> bool:
        """True if the method does nothing."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that the method is attached to."""

    def sections(self) -> list[GradientSection]:
        """Return all parameters with a gradient: a section for each group of the method and group of the optimizer."""

    def penalty_gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradient of the penalty with respect to each of ``params``, for strength 1."""


class OverTime:
    """The base class of the factors on a strength, with one factor per step; the class itself is the factor 1."""

    observes_gradients = False  # True if it keeps a state from one method's gradients, so two methods cannot share it
    # True if all runs of a stack have the same factor, or the factor is one per run; each subclass declares it anew
    stackable: ClassVar[bool] = True
    is_always_zero = False  # True if the factor is certain to be 0 in every step
    is_partial = False  # True if the factor multiplies the strength of some parameters only, see ``acts_on``

    @property
    def is_constant(self) -> bool:
        """True if the factor is 1 in every step: for this class, not for a subclass."""
        return type(self) is OverTime

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def find_in(self, model: nn.Module, params: Sequence[Tensor]) -> None:
        """Hook of ``for_model``: find in the model what this factor needs. Does nothing by default.

        Args:
            model: the network.
            params: the parameters that the method decays, without those of strength 0.

        Raises:
            ValueError: if it is not there.
        """

    def acts_on(self, p: Tensor) -> bool:
        """Return True if the factor multiplies the strength of ``p``."""
        return True

    def note_on(self, p: Tensor) -> str:
        """Return a remark on ``p`` for ``Regularizer.describe``; "" by default."""
        return ""

    def note_on_method(self, method: ObservedMethod) -> str:
        """Return a remark on the whole method for ``Regularizer.describe``; "" by default."""
        return ""

    def check(self, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
        """Hook of ``attach``: raise a ValueError if this factor cannot be computed. Does nothing by default.

        Args:
            optimizer: the optimizer that the method is being attached to.
            clock: the method's clock, in which a length that this factor needs may be None.
        """

    def check_method(self, method: ObservedMethod) -> None:
        """Hook of ``attach``: raise a ValueError if this factor does not suit the method. Does nothing by default."""

    def observe(self, method: ObservedMethod) -> None:
        """Hook at the beginning of a step: read the gradients of the loss in ``p.grad``. Does nothing by default."""

    def factor(self, step: int, optimizer_group: dict[str, Any], clock: Clock = Clock()) -> float | Tensor:  # noqa: B008
        """Return the factor on the strength of the next update.

        Args:
            step: number of updates already made with the method.
            optimizer_group: the optimizer's group of the parameters; {} while the method is not attached.
            clock: the length of the run and of an epoch, in updates.

        Returns:
            A number, or a scalar tensor; for a stack of runs a number or a tensor (runs, 1, 1). A factor that depends
            on the gradients is 1 before the first ``observe``.
        """
        return 1.0

    def obstacle_to_stacking(self, optimizer: torch.optim.Optimizer) -> str | None:
        """Return why a stack of runs cannot have this factor under an optimizer of this kind; None if it can."""
        if vars(type(self)).get("stackable", False):
            return None
        return f"{type(self).__name__} takes its strength from the gradients of one run"

    def gather_runs(self, method: ObservedMethod, runs: Sequence[Self]) -> None:
        """Take over the states of the factors of all runs on which ``method`` acts. Does nothing by default.

        Args:
            method: the method of this factor, bound to the view of these runs.
            runs: the factor of each run.
        """

    def scatter_runs(self, method: ObservedMethod, runs: Sequence[Self]) -> None:
        """Give each run's part of the state to the factor of the run. Does nothing by default."""

    def metrics(self) -> dict[str, Tensor]:
        """Return the values of the last step to be logged, as scalar tensors by metric name; {} by default."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state that an exact resume needs; {} by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of ``state_dict()``. Does nothing by default."""


class ScheduleFactor(OverTime):
    """Any schedule of ``wdlab.schedules`` as a factor on the strength, for example a cosine.

    Args:
        schedule: function ``(step, steps, steps_per_epoch) -> factor``, see :mod:`wdlab.schedules`. Bind its further
            options by ``functools.partial``.
        steps_per_epoch: length of an epoch in updates; None for the length in the method's ``clock``, which
            ``wdlab.train`` sets.

    Raises:
        ValueError: if ``schedule`` is not callable; at ``attach``, if the length of the run or of an epoch is unknown.
    """

    stackable = True

    def __init__(self, schedule: Callable[..., float], steps_per_epoch: int | None = None) -> None:
        if not callable(schedule):
            raise ValueError(f"schedule={schedule!r}: must be a function of step, steps and steps_per_epoch")
        self.schedule, self.steps_per_epoch = schedule, steps_per_epoch

    def __repr__(self) -> str:
        function = self.schedule.func if isinstance(self.schedule, functools.partial) else self.schedule
        return f"{type(self).__name__}({getattr(function, '__name__', function)})"

    def check(self, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
        if clock.steps is None or self._epoch(clock) is None:
            raise ValueError(f"{self!r}: needs the length of the run; set the method's clock to Clock(steps, ...)")
        self.factor(0, {}, clock)

    def factor(self, step: int, optimizer_group: dict[str, Any], clock: Clock = Clock()) -> float:  # noqa: B008
        return self.schedule(step, clock.steps, self._epoch(clock))

    def _epoch(self, clock: Clock) -> int | None:
        return clock.steps_per_epoch if self.steps_per_epoch is None else self.steps_per_epoch


class _WithLength(ScheduleFactor):
    """The base class of the factors that have one length, given in epochs or in steps.

    Args:
        epochs: the length in epochs, >= 0; None if it is given in steps.
        steps: the length in updates, >= 0; None if it is given in epochs.
        steps_per_epoch: as in :class:`ScheduleFactor`; only needed for a length in epochs.

    Raises:
        ValueError: if ``epochs`` and ``steps`` are both given or both None, or the length is negative or not finite; at
            ``attach``, if a length in epochs is given and the length of an epoch is unknown.
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


class Early(_WithLength):
    """The factor 1 for the first ``epochs`` or ``steps``, then 0: decay only early in training (P4).

    [grade B]
    """

    stackable = True

    @property
    def is_always_zero(self) -> bool:
        """True if the length is 0, so that the factor is 0 in every step."""
        return 0 in (self.epochs, self.steps)


class Delayed(_WithLength):
    """The factor 0 for the first ``epochs`` or ``steps``, then 1: decay that starts late (P3, the delayed form).

    [grade B]
    """

    stackable = True
    function = staticmethod(schedules.delayed)


class Late(Delayed):
    """The same as ``Delayed``, under P4's name.

    [grade B]
    """

    stackable = True


class WarmUp(_WithLength):
    """A factor that grows linearly to 1 over the first ``epochs`` or ``steps``, as in a learning rate's warm-up."""

    stackable = True
    function = staticmethod(schedules.warm_up)


def why_always_zero(over_time: Sequence[OverTime], clock: Clock) -> str | None:
    """Return why the product of factors is 0 in every step, None if it may be another number in some step.

    Args:
        over_time: the factors.
        clock: the length of the run and of an epoch. If both are known, factors that are 0 until the run has ended
            count too, for example a delay that is longer than the run.
    """
    if zero := [schedule for schedule in over_time if schedule.is_always_zero]:
        return f"over_time={zero[0]!r} is 0 in every step"
    scheduled = [schedule for schedule in over_time if isinstance(schedule, ScheduleFactor)]
    if not scheduled or clock.steps is None or clock.steps_per_epoch is None:
        return None
    steps = itertools.chain((clock.steps - 1, 0), range(1, clock.steps - 1))  # in most runs one of these two suffices
    if any(all(schedule.factor(step, {}, clock) != 0 for schedule in scheduled) for step in steps):
        return None
    length = f"in all {clock.steps:,} steps of the run, of which an epoch has {clock.steps_per_epoch:,}"
    return f"over_time={' x '.join(map(repr, scheduled))} is 0 {length}"


def check_over_time(over_time: OverTime | Iterable[OverTime] | None) -> tuple[OverTime, ...]:
    """Return ``over_time`` as a tuple, () for None; raise a ValueError if an element is not an ``OverTime``."""
    if over_time is None:
        return ()
    several = isinstance(over_time, Iterable) and not isinstance(over_time, str | dict)
    factors = tuple(over_time) if several else (over_time,)
    for schedule in factors:
        if not isinstance(schedule, OverTime):
            raise ValueError(f"over_time={schedule!r}: must be an OverTime; in a config, regularizer/over_time=early")
    return factors


def on_device(state: Any, device: torch.device) -> Any:
    """Return a nested state (dicts and lists) with its tensors moved to ``device``. Checkpoints are read on the CPU."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: on_device(value, device) for key, value in state.items()}
    return [on_device(value, device) for value in state] if isinstance(state, list) else state
