"""How a strength changes over time: factors on the strength of any method, by the clock or by the gradients.

``L1(params, 1e-3, over_time=Early(epochs=5, steps_per_epoch=391))``; several factors multiply. By the clock: ``Early``,
``Late``, ``Delayed``, ``WarmUp``. By the gradients: ``CoherenceGate`` (P3) and ``GradientScale`` (P5, in
``gradient_scale.py``).
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wdlab import schedules
from wdlab.regularizers.checks import check_number

if TYPE_CHECKING:
    from wdlab.regularizers.base import Regularizer


class OverTime:
    """A constant strength, and the base of every way to change it: a factor for each step."""

    steps_per_epoch: int | None = None
    observes_gradients = False  # whether it remembers what it sees of one method, and so cannot serve two

    is_always_zero = False  # whether the factor is 0 in every step, whatever happens

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise a ValueError if this cannot work with the optimizer, or lacks what it needs to."""

    def observe(self, method: "Regularizer") -> None:
        """Before a step, before any method has changed anything: the gradients of the loss alone are in ``p.grad``."""

    def factor(self, step: int, optimizer_group: dict[str, Any]) -> float | Tensor:
        """What the strength is multiplied by after ``step`` updates, for parameters in that group of the optimizer.

        A number, or a scalar tensor if it comes from the data. It is 1 before the first ``observe``.
        """
        return 1.0

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a ``state_dict()``."""


class _ByTheClock(OverTime):
    """A pure function of the update and a length, given in epochs or in steps.

    Args:
        epochs, steps: the length; exactly one of them, >= 0.
        steps_per_epoch: how many updates an epoch has, if the length is in epochs. ``wdlab.train`` says it itself.

    Raises:
        ValueError: for none or both of the lengths, or a bad one.
    """

    schedule = staticmethod(schedules.early)

    def __init__(
        self, epochs: float | None = None, steps: float | None = None, steps_per_epoch: int | None = None
    ) -> None:
        if (epochs is None) == (steps is None):
            raise ValueError(f"epochs={epochs}, steps={steps}: give exactly one of them")
        self.epochs = None if epochs is None else check_number("epochs", epochs, lowest=0.0)
        self.steps = None if steps is None else check_number("steps", steps, lowest=0.0)
        self.steps_per_epoch = steps_per_epoch

    def __repr__(self) -> str:
        length = f"epochs={self.epochs:g}" if self.steps is None else f"steps={self.steps:g}"
        return f"{type(self).__name__}({length})"

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self.check_length()

    def check_length(self) -> None:
        """Raise a ValueError if the length in updates is not known."""
        if self.steps is None and self.steps_per_epoch is None:
            raise ValueError(f"epochs={self.epochs}: needs steps_per_epoch too, or give the length as steps")

    def factor(self, step: int, optimizer_group: dict[str, Any]) -> float:
        self.check_length()
        return self.schedule(step, self.epochs * self.steps_per_epoch if self.steps is None else self.steps)


class Early(_ByTheClock):
    """The full strength for the first ``epochs`` or ``steps``, then none (P4).  [grade B]"""

    @property
    def is_always_zero(self) -> bool:
        return 0 in (self.epochs, self.steps)


class Delayed(_ByTheClock):
    """No strength for the first ``epochs`` or ``steps``, then the full one (P3, the delayed form).  [grade B]"""

    schedule = staticmethod(schedules.delayed)


class Late(Delayed):
    """As ``Delayed``, under the name that P4 has for it: decay switched on late.  [grade B]"""


class WarmUp(_ByTheClock):
    """A strength that grows linearly over the first ``epochs`` or ``steps``, as a learning rate's warm-up does."""

    schedule = staticmethod(schedules.warm_up)
