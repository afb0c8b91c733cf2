"""Gradient-coherent regularization (P3): a strong penalty that acts only in steps with a coherent loss gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wdlab.regularizers.base import Params, Schedules
from wdlab.regularizers.checks import check_choice, check_number
from wdlab.regularizers.in_loss import InLoss
from wdlab.regularizers.over_time import ObservedMethod, OverTime, check_over_time
from wdlab.regularizers.penalties import Absolute, HalfSquare
from wdlab.schedules import Clock
from wdlab.tensors import dots, local_shards

PENALTIES = {"l1": Absolute, "l2": HalfSquare}
COHERENCE = ("running_mean", "total_gradient", "norm_ratio")


class CoherenceGate(OverTime):
    """A factor on the strength that is 1 while the loss gradient is coherent, else 0 (P3, Park et al. 2018).

    [grade C]

    The paper's abstract states the idea without the recipe; the statistics below are our readings. The factor is 1 if
    the statistic is at least the threshold. The gradient of the loss is ``g``, the gradient of the penalty at full
    strength is ``r``, each as one vector over all parameters of the method that have a gradient. The statistics are:

    - ``running_mean``: cosine between ``g`` and the exponential mean of the earlier ``g`` (0 in the first step);
    - ``total_gradient``: cosine between ``g`` and ``g + r``;
    - ``norm_ratio``: ``|g| / |r|``.

    A cosine with a zero vector counts as 0. ``norm_ratio`` is 0 if ``g`` is zero; if only ``r`` is zero, the largest
    finite number.

    Args:
        coherence: name of the statistic.
        threshold: a finite number, to be tuned like any other hyperparameter.
        momentum: weight of the old mean in the exponential mean, in [0, 1). Only ``running_mean`` uses it.

    Raises:
        ValueError: for an unknown ``coherence``, or a number out of its range.
    """

    observes_gradients = True

    def __init__(self, coherence: str = "running_mean", threshold: float = 0.1, momentum: float = 0.9) -> None:
        self.coherence = check_choice("coherence", coherence, COHERENCE)
        self.threshold = check_number("threshold", threshold)
        self.momentum = check_number("momentum", momentum, lowest=0.0)
        if self.momentum >= 1:
            raise ValueError(f"momentum={momentum}: must be less than 1")
        self.statistic: Tensor | None = None  # the last step's statistic, a scalar; None before the first step
        self._open: float | Tensor = 1.0  # the factor: 1 or 0
        self._means: list[Tensor | None] = []  # exponential mean of the gradients, per parameter of the method

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.coherence} >= {self.threshold:g})"

    @property
    def is_always_zero(self) -> bool:
        return self.coherence != "norm_ratio" and self.threshold > 1  # no cosine is greater than 1

    def metrics(self) -> dict[str, Tensor]:
        """Return the last step's statistic under the name ``gradient/gate``; {} before the first step."""
        return {} if self.statistic is None else {"gradient/gate": self.statistic}

    def observe(self, method: ObservedMethod) -> None:
        params = method.params
        with_gradient = [i for i, p in enumerate(params) if p.grad is not None]
        if not with_gradient:
            return
        if self.coherence == "running_mean":
            self.statistic = self._cosine_with_mean(params, with_gradient)
        else:
            params = [params[i] for i in with_gradient]
            gradients, penalty = local_shards([p.grad for p in params]), _full_penalty_gradient(method, params)
            if self.coherence == "norm_ratio":
                self.statistic = (norm(gradients, params) / norm(penalty, params)).nan_to_num(nan=0.0)
            else:
                self.statistic = cosine(gradients, torch._foreach_add(gradients, penalty), params)
        self._open = (self.statistic >= self.threshold).to(self.statistic.dtype)

    def _cosine_with_mean(self, params: Sequence[Tensor], with_gradient: list[int]) -> Tensor:
        """Return the cosine between the gradients and their exponential means, then update the means in place.

        Args:
            params: all parameters of the method.
            with_gradient: indices in ``params`` of the parameters that have a gradient.
        """
        self._means += [None] * (len(params) - len(self._means))
        for i in with_gradient:
            if self._means[i] is None:
                self._means[i] = torch.zeros_like(params[i].grad)
        gradients, means = [params[i].grad for i in with_gradient], [self._means[i] for i in with_gradient]
        statistic = cosine(gradients, means)
        torch._foreach_lerp_(local_shards(means), local_shards(gradients), 1 - self.momentum)
        return statistic

    def factor(self, step: int, optimizer_group: dict[str, Any], clock: Clock = Clock()) -> float | Tensor:  # noqa: B008
        return self._open

    def state_dict(self) -> dict[str, Any]:
        return {"means": list(self._means), "open": self._open}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._means = [None if mean is None else mean.clone() for mean in state["means"]]
        self._open = state["open"]


def _full_penalty_gradient(method: ObservedMethod, params: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of the penalty at full strength for each of ``params``, times -1 if the optimizer maximizes.

    A sharded parameter's gradient is that of its local shard.
    """
    strengths = {id(p): section.ascent_sign * section.strength for section in method.sections() for p in section.params}
    factors = [strengths[id(p)] for p in params]
    return torch._foreach_mul(local_shards(method.penalty_gradient(params)), factors)


def cosine(left: Sequence[Tensor], right: Sequence[Tensor], like: Sequence[Tensor] | None = None) -> Tensor:
    """Return the cosine between two lists of tensors, each taken as one vector; a float64 scalar, 0 for a zero vector.

    Args:
        left: whole tensors, DTensors or local shards.
        right: tensors of the same shapes and sharding.
        like: the DTensors that ``left`` are the local shards of; None if ``left`` are not shards.
    """
    product = dots(left, right, like).sum()
    return (product / (norm(left, like) * norm(right, like))).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def norm(tensors: Sequence[Tensor], like: Sequence[Tensor] | None = None) -> Tensor:
    """Return the L2 norm of a list of tensors, taken as one vector; a float64 scalar, since squares may be tiny.

    Args:
        tensors: whole tensors, DTensors or local shards.
        like: the DTensors that ``tensors`` are the local shards of; None if ``tensors`` are not shards.
    """
    return dots(tensors, tensors, like).sum().sqrt()


class Coherent(InLoss):
    """``L1`` or ``L2`` whose strength is multiplied by a :class:`CoherenceGate`.

    [grade C: our reading]

    Park et al. 2018, arXiv 1811.08056 (P3). On the default route the penalty's gradient is added to the gradient of the
    loss, so the optimizer multiplies the decay by its learning rate. Any other method accepts the gate as its
    ``over_time``.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
        penalty: ``l1`` or ``l2``.
        coherence, threshold, momentum: as in :class:`CoherenceGate`.
        route: as in :class:`wdlab.regularizers.L2`.
    """

    def __init__(
        self,
        params: Params,
        strength: float,
        penalty: str = "l2",
        coherence: str = "running_mean",
        threshold: float = 0.1,
        momentum: float = 0.9,
        route: str = "both",
        over_time: Schedules = None,
    ) -> None:
        function = PENALTIES[check_choice("penalty", penalty, tuple(PENALTIES))]()
        gate = CoherenceGate(coherence, threshold, momentum)
        super().__init__(params, strength, function, route, (gate, *check_over_time(over_time)))
