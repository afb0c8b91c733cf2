"""Gradient-coherent regularization (P3): a strong penalty that acts only while it leaves the loss gradient coherent."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from wdlab.regularizers.base import Params, Schedules
from wdlab.regularizers.checks import check_choice, check_number
from wdlab.regularizers.in_loss import InLoss, ascent_sign
from wdlab.regularizers.over_time import ObservedMethod, OverTime, check_over_time
from wdlab.regularizers.penalties import Absolute, HalfSquare
from wdlab.regularizers.runs import gathered, products_of_runs
from wdlab.schedules import Clock
from wdlab.tensors import add_, dots, local_shards

PENALTIES = {"l1": Absolute, "l2": HalfSquare}
COHERENCE = ("running_mean", "total_gradient", "norm_ratio")
PROJECT = "project"


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
    stackable = True

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
        tensors = method.tensors
        with_gradient = [i for i, t in enumerate(tensors) if t.grad is not None]
        if not with_gradient:
            return
        observed = [tensors[i] for i in with_gradient]
        gradients = local_shards([t.grad for t in observed])
        if self.coherence == "running_mean":
            means = self._means_of(tensors, with_gradient)
            self.statistic = cosine(*_products(method, gradients, means, observed))
            torch._foreach_lerp_(means, gradients, 1 - self.momentum)
        else:
            penalty = _full_penalty_gradient(method, observed)
            if self.coherence == "norm_ratio":
                square, _, penalty_square = _products(method, gradients, penalty, observed)
                self.statistic = (square.sqrt() / penalty_square.sqrt()).nan_to_num(nan=0.0)
            else:
                total = torch._foreach_add(gradients, penalty)
                self.statistic = cosine(*_products(method, gradients, total, observed))
        is_open = self.statistic >= self.threshold
        self._open = is_open.to(self.statistic.dtype if method.view.runs is None else tensors[0].dtype)

    def _means_of(self, tensors: Sequence[Tensor], with_gradient: list[int]) -> list[Tensor]:
        """Return the exponential means of the gradients, zeros where there is none yet; for DTensors local shards.

        Args:
            tensors: all tensors that the method acts on.
            with_gradient: indices in ``tensors`` of those that have a gradient.
        """
        self._means += [None] * (len(tensors) - len(self._means))
        for i in with_gradient:
            if self._means[i] is None:
                self._means[i] = torch.zeros_like(tensors[i].grad)
        return local_shards([self._means[i] for i in with_gradient])

    def factor(self, step: int, optimizer_group: dict[str, Any], clock: Clock = Clock()) -> float | Tensor:  # noqa: B008
        return self._open

    def gather_runs(self, method: ObservedMethod, runs: Sequence[Self]) -> None:
        self.statistic, self._means = None, []
        self._open = gathered([run._open for run in runs], method.tensors[0].new_empty(len(runs), 1, 1))
        for i, (p, t) in enumerate(zip(method.params, method.tensors, strict=True)):
            of_runs = [run._means[i] if i < len(run._means) else None for run in runs]
            if any(mean is not None for mean in of_runs):
                self._means += [None] * (i - len(self._means))
                self._means.append(gathered([torch.zeros_like(p) if m is None else m for m in of_runs], t))

    def scatter_runs(self, method: ObservedMethod, runs: Sequence[Self]) -> None:
        if self.statistic is None:
            return  # no step has been made: the runs have the state that ``gather_runs`` has read
        for row, run in enumerate(runs):
            run.statistic = self.statistic[row].view(())
            run._open = self._open[row].view(()).to(run.statistic.dtype)
            means = zip(self._means, method.params, strict=False)
            run._means = [None if mean is None else mean[row].reshape(p.shape) for mean, p in means]

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
    gradients = local_shards(method.penalty_gradient(params))
    if method.view.runs is not None:
        return [gradient * factor for gradient, factor in zip(gradients, factors, strict=True)]
    return torch._foreach_mul(gradients, factors)


def _products(
    method: ObservedMethod, left: Sequence[Tensor], right: Sequence[Tensor], like: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``l . l``, ``l . r`` and ``r . r``, where each list of tensors is taken as one vector.

    Args:
        method: the method whose gradients these are.
        left: whole tensors, or the local shards of DTensors.
        right: tensors of the same shapes and sharding.
        like: the tensors or DTensors that ``left`` are the values or local shards of.

    Returns:
        Float64, since squares may be tiny: scalars, for a stack a number per run, (runs, 1, 1).
    """
    if method.view.runs is not None:
        return products_of_runs(left, right)
    pairs = (left, left), (left, right), (right, right)
    return tuple(dots(*pair, like).sum() for pair in pairs)


def cosine(square: Tensor, product: Tensor, other_square: Tensor) -> Tensor:
    """Return the cosine between two vectors, from the products of ``_products``; 0 if one of the vectors is zero."""
    return (product / (square.sqrt() * other_square.sqrt())).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


class Coherent(InLoss):
    """``L1`` or ``L2`` under a :class:`CoherenceGate`, or without the part that opposes the gradient of the loss.

    [grade C: our reading; the rule of ``project`` is grade B]

    Park et al. 2018, arXiv 1811.08056 (P3). On the default route the penalty's gradient is added to the gradient of the
    loss, so the optimizer multiplies the decay by its learning rate. Any other method accepts the gate as its
    ``over_time``.

    ``coherence="project"`` has no gate. The penalty acts in every step, without the component of its gradient that
    opposes the gradient of the loss (GrOD, TKDD 2022). With ``g`` and ``r`` the gradients of the loss and of the
    penalty at the strength in force, each as one vector over all decayed parameters, ``r + k g`` is added to the
    gradient in place of ``r``, with ``k = max(0, -g . r) / (g . g)``. The metrics ``gradient/penalty_norm`` and
    ``gradient/coherence`` are those of ``r``.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
        penalty: ``l1`` or ``l2``.
        coherence: a statistic of :class:`CoherenceGate`, or ``project``.
        threshold, momentum: as in :class:`CoherenceGate`; ``project`` uses neither.
        route: as in :class:`wdlab.regularizers.L2`; for ``project`` it must be ``both``.

    Raises:
        ValueError: for an argument that is not allowed, or ``project`` on another route.
    """

    stackable = True

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
        self.projects = check_choice("coherence", coherence, (*COHERENCE, PROJECT)) == PROJECT
        if self.projects and route != "both":
            raise ValueError(f"route={route!r}: must be 'both' with coherence={PROJECT!r}")
        gates = () if self.projects else (CoherenceGate(coherence, threshold, momentum),)
        super().__init__(params, strength, function, route, (*gates, *check_over_time(over_time)))
        self.minimizes_penalty = self.minimizes_penalty and not self.projects  # there a step is 0 only where g is 0

    def after_backward(self) -> None:
        if not self.projects:
            super().after_backward()
        elif parts := self.active_groups():
            params = [p for part in parts for p in part.params]
            gradients = local_shards([p.grad for p in params])
            slopes = [(part, slope) for part in parts for slope in self.penalty_gradient(part.params)]
            penalty = [slope * (ascent_sign(part) * part.strength) for part, slope in slopes]
            square, product, _ = _products(self, gradients, penalty, params)
            largest = torch.finfo(penalty[0].dtype).max
            opposing = (-product / square).nan_to_num(nan=0.0, posinf=0.0).clamp(0, largest).to(penalty[0].dtype)
            add_(penalty, gradients, opposing)
            self.add_to_gradients(params, penalty, torch.ones_like(opposing))  # for a stack a factor per run
