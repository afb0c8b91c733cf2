"""How a strength changes over time: factors on the strength of any method, by the clock or by the gradients.

``L1(params, 1e-3, over_time=Early(epochs=5, steps_per_epoch=391))``; several factors multiply. By the clock: ``Early``,
``Late``, ``Delayed``, ``WarmUp``. By the gradients: ``CoherenceGate`` (P3) and ``GradientScale`` (P5, in
``gradient_scale.py``).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wdlab import schedules
from wdlab.foreach import dots, local
from wdlab.regularizers.checks import check_choice, check_number

if TYPE_CHECKING:
    from wdlab.regularizers.base import Regularizer


class OverTime:
    """A constant strength, and the base of every way to change it: a factor for each step."""

    steps_per_epoch: int | None = None
    looks = False  # whether it remembers what it sees of one method, and so cannot serve two

    is_always_zero = False  # whether the factor is 0 in every step, whatever happens

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise a ValueError if this cannot work with the optimizer, or lacks what it needs to."""

    def look(self, method: "Regularizer") -> None:
        """Before a step, before any method has changed anything: the gradients of the loss alone are in ``p.grad``."""

    def factor(self, step: int, optimizer_group: dict[str, Any]) -> float | Tensor:
        """What the strength is multiplied by after ``step`` updates, for parameters in that group of the optimizer.

        A number, or a scalar tensor if it comes from the data. Before the first ``look`` a factor from the data is 1.
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


COHERENCE = ("running_mean", "total_gradient", "norm_ratio")


class CoherenceGate(OverTime):
    """Regularize in a step only while the loss gradient stays coherent under it (P3, Park et al. 2018).  [grade C]

    The abstract states the idea, not the recipe; these are our readings of it. The factor is 1 if the statistic is at
    least the threshold, else 0. With ``g`` the gradient of the loss and ``r`` that of the penalty at full strength,
    over all parameters of the method that have a gradient:

    - ``running_mean``: cosine between ``g`` and the exponential mean of the ``g`` before it (0 in the first step);
    - ``total_gradient``: cosine between ``g`` and ``g + r``;
    - ``norm_ratio``: ``|g| / |r|``.

    A statistic with a zero in its denominator is 0; ``norm_ratio`` without a penalty gradient lets the method act.

    Args:
        coherence: which statistic.
        threshold: finite. To be tuned like any other hyperparameter.
        momentum: of the exponential mean, in [0, 1).

    Raises:
        ValueError: for a bad argument.
    """

    looks = True

    def __init__(self, coherence: str = "running_mean", threshold: float = 0.1, momentum: float = 0.9) -> None:
        self.coherence = check_choice("coherence", coherence, COHERENCE)
        self.threshold = check_number("threshold", threshold)
        self.momentum = check_number("momentum", momentum, lowest=0.0)
        if self.momentum >= 1:
            raise ValueError(f"momentum={momentum}: must be less than 1")
        self.statistic: Tensor | None = None  # of the last step, a scalar
        self._open: float | Tensor = 1.0
        self._means: list[Tensor | None] = []  # per parameter of the method

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.coherence} >= {self.threshold:g})"

    @property
    def is_always_zero(self) -> bool:
        return self.coherence != "norm_ratio" and self.threshold > 1  # no cosine is

    def look(self, method: "Regularizer") -> None:
        params = method.params
        live = [i for i, p in enumerate(params) if p.grad is not None]
        if not live:
            return
        if self.coherence == "running_mean":
            self.statistic = self._cosine_with_mean(params, live)
        else:
            params = [params[i] for i in live]
            gradients, penalty = local([p.grad for p in params]), _full_penalty_gradient(method, params)
            if self.coherence == "norm_ratio":
                self.statistic = (norm(gradients, params) / norm(penalty, params)).nan_to_num(nan=0.0)
            else:
                self.statistic = cosine(gradients, torch._foreach_add(gradients, penalty), params)
        self._open = (self.statistic >= self.threshold).to(self.statistic.dtype)

    def _cosine_with_mean(self, params: Sequence[Tensor], live: list[int]) -> Tensor:
        self._means += [None] * (len(params) - len(self._means))
        for i in live:
            if self._means[i] is None:
                self._means[i] = torch.zeros_like(params[i].grad)
        gradients, means = [params[i].grad for i in live], [self._means[i] for i in live]
        statistic = cosine(gradients, means)
        torch._foreach_lerp_(local(means), local(gradients), 1 - self.momentum)
        return statistic

    def factor(self, step: int, optimizer_group: dict[str, Any]) -> float | Tensor:
        return self._open

    def state_dict(self) -> dict[str, Any]:
        return {"means": list(self._means), "open": self._open}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._means = [None if mean is None else mean.clone() for mean in state["means"]]
        self._open = state["open"]


def _full_penalty_gradient(method: "Regularizer", params: Sequence[Tensor]) -> list[Tensor]:
    strengths = {id(p): group["strength"] for group in method.groups for p in group["params"]}
    maximized = {id(p) for group in method.optimizer.param_groups if group.get("maximize") for p in group["params"]}
    factors = [-strengths[id(p)] if id(p) in maximized else strengths[id(p)] for p in params]
    return torch._foreach_mul(local(method.penalty_gradient(params)), factors)


def cosine(left: Sequence[Tensor], right: Sequence[Tensor], like: Sequence[Tensor] | None = None) -> Tensor:
    """Cosine between two lists of tensors, each as one long vector; 0 if either is zero. A scalar tensor."""
    product = dots(left, right, like).sum()
    return (product / (norm(left, like) * norm(right, like))).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def norm(tensors: Sequence[Tensor], like: Sequence[Tensor] | None = None) -> Tensor:
    """L2 norm of a list of tensors as one long vector, a float64 scalar: gradients may be as small as they like."""
    return dots(tensors, tensors, like).sum().sqrt()
