"""The factor of scheduled weight decay (P5), which divides the strength by the scale of the gradients.

Xie et al. 2020/2023, arXiv 2011.11152. Used by ``ScheduledDecay`` and by the optimizers AdamS and SGDS.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from wdlab.regularizers.checks import as_number, is_adam_group, is_sgd_group
from wdlab.regularizers.over_time import ObservedMethod, OverTime
from wdlab.regularizers.runs import gathered, square_sums_of_runs
from wdlab.regularizers.views import ParametersView
from wdlab.schedules import Clock
from wdlab.tensors import accumulation_dtype, is_sharded, local_shards, over_shards, square_sums

# per parameter: ``mean_square``, the moving average of mean(g^2), and ``updates``, the number of updates of the average
MeanSquares = Mapping[Tensor, Mapping[str, Any]]


class GradientScale(OverTime):
    """The factor of scheduled weight decay on the strength, from the optimizer's gradients or momentum.

    [grade A: released AdamS and SGDS, step by step]

    With Adam, AdamW and AMSGrad the factor is ``1 / sqrt(V)``. V is the mean of the bias-corrected second moment that
    includes the gradient of the current step (with AMSGrad: of the maximum of the second moments), over all elements of
    all parameters of the optimizer that have a gradient. The mean of a moving average equals the moving average of the
    means, ``v <- b2 v + (1 - b2) mean(g^2)``. One number ``v`` is kept per parameter, so V costs one norm of the
    gradients. With SGD the factor is ``(1 - dampening) / (1 - momentum)``.

    V is computed from the gradient of the loss, before any penalty is added to the gradient. If V is 0, the factor is
    0. On the CPU the factor is a number, elsewhere a scalar tensor, so that no step waits for the device. In a stack
    there is a factor for each run, (runs, 1, 1), over the parameters of the run.

    Raises:
        ValueError: at ``attach``, for an optimizer with a group that is neither Adam's nor SGD's kind, or with SGD's
            momentum >= 1 or dampening > 1.
    """

    observes_gradients = True
    stackable = True

    def __init__(self) -> None:
        self._averages: dict[Tensor, dict[str, Any]] = {}  # see MeanSquares
        self._order: list[Tensor] = []  # the optimizer's parameters, in whose order the averages are saved
        self._loaded: list[dict[str, Any]] = []  # averages that were loaded and not yet assigned to parameters
        self._inverse_root: float | Tensor = 1.0  # 1 / sqrt(V); for a stack a number per run, (runs, 1, 1)
        self._of_runs: Tensor | None = None  # only for a stack: the averages of each run, (parameters, runs)
        self._updates = 0  # only for a stack: the number of updates of the averages

    def check(self, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
        for group in optimizer.param_groups:
            if is_sgd_group(group):
                check_momentum(group["momentum"], group["dampening"])
            elif not is_adam_group(group):
                raise ValueError(f"GradientScale: needs Adam, AdamW or SGD, got {type(optimizer).__name__}")

    def obstacle_to_stacking(self, optimizer: torch.optim.Optimizer) -> str | None:
        if any(group.get("amsgrad") for group in optimizer.param_groups):
            return "optimizer.amsgrad with a gradient scale is for runs that are trained alone"
        return super().obstacle_to_stacking(optimizer)

    def observe(self, method: ObservedMethod) -> None:
        optimizer = method.optimizer
        if method.view.runs is not None:
            self._observe_runs(method.view)
            return
        self._order = _params(optimizer)
        averages = dict(zip(self._order, self._loaded, strict=False)) if self._loaded else self._averages
        self._loaded = []
        kept = (p for p in self._order if p in averages)  # averages of replaced parameters are dropped
        self._averages = {p: averages[p] for p in kept if not self._is_stale(averages[p], optimizer.state.get(p))}
        scale = adam_scale(optimizer, self._averages)
        if scale is not None:
            self._inverse_root = scale.inverse_root
            self._averages |= scale.mean_squares()

    @staticmethod
    def _is_stale(average: Mapping[str, Any], state: Mapping[str, Any] | None) -> bool:
        """Return True if a parameter's average has another number of updates than Adam's state of the parameter.

        The numbers differ after steps that were taken while the method was detached, and after a state was loaded.
        A step count on a GPU is not compared (False), since the step would have to wait for the GPU.

        Args:
            average: entry of ``MeanSquares`` for the parameter.
            state: the optimizer's state of the parameter; None or {} before its first step.
        """
        step = (state or {}).get("step", 0)
        return not (isinstance(step, Tensor) and not step.is_cpu) and int(step) != average.get("updates", 0)

    def _observe_runs(self, view: ParametersView) -> None:
        """Compute ``1 / sqrt(V)`` of each run of a stack, (runs, 1, 1), and update the averages of each run."""
        if self._of_runs is None:
            return  # no optimizer of Adam's kind
        gradients = [view.tensor(p).grad for p in self._order]
        beta, self._updates = as_number(view.optimizer.param_groups[0]["betas"][1]), self._updates + 1
        sizes = _vector(tuple(p.numel() for p in self._order), torch.float64, gradients[0].device)[:, None]
        self._of_runs = beta * self._of_runs + (1 - beta) * square_sums_of_runs(gradients) / sizes
        v = sum(self._of_runs * sizes) / sizes.sum() / (1 - beta**self._updates)
        largest = torch.finfo(gradients[0].dtype).max  # an infinite factor times a strength of 0 would be NaN
        self._inverse_root = _inverse_root(v).clamp(max=largest)[:, None, None].to(gradients[0].dtype)

    def gather_runs(self, method: ObservedMethod, runs: Sequence[Self]) -> None:
        view, self._of_runs = method.view, None
        self._averages, self._order, self._loaded = {}, _params(view.optimizer), []
        if not is_adam_group(view.optimizer.param_groups[0]):
            return
        saved, states = [run.state_dict() for run in runs], [view.state(p) for p in self._order]
        like = view.tensor(self._order[0]).new_empty(len(runs), 1, 1)
        self._inverse_root = gathered([state["inverse_root"] for state in saved], like)
        self._updates = int(states[0]["step"])
        self._of_runs = torch.stack([state["exp_avg_sq"].mean((1, 2), dtype=torch.float64) for state in states])
        for run, state in enumerate(saved):
            for i, average in enumerate(state["memory"]):
                if average.get("updates") == self._updates:
                    self._of_runs[i, run] = average["mean_square"]

    def scatter_runs(self, method: ObservedMethod, runs: Sequence[Self]) -> None:
        roots: Any = [1.0] * len(runs)
        averages: Any = [[]] * len(runs)
        if self._of_runs is not None:
            roots, averages = self._inverse_root.flatten().double(), self._of_runs.T
            if roots.is_cpu:  # numbers as for a single run; elsewhere scalars, so that nothing waits for the device
                roots, averages = roots.tolist(), averages.tolist()
        for run, root, of_run in zip(runs, roots, averages, strict=True):
            memory = [{"mean_square": average, "updates": self._updates} for average in of_run]
            run.load_state_dict({"memory": memory or [{} for _ in self._order], "inverse_root": root})

    def factor(self, step: int, optimizer_group: dict[str, Any], clock: Clock = Clock()) -> float | Tensor:  # noqa: B008
        if is_sgd_group(optimizer_group):
            return sgd_factor(as_number(optimizer_group["momentum"]), as_number(optimizer_group["dampening"]))
        return self._inverse_root

    def state_dict(self) -> dict[str, Any]:
        averages = [dict(self._averages.get(p, {})) for p in self._order] if self._order else self._loaded
        return {"memory": averages, "inverse_root": self._inverse_root}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._averages, self._order = {}, []
        self._loaded = [dict(average) for average in state["memory"]]
        self._inverse_root = state["inverse_root"]


def _params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters of all groups of an optimizer, in the order of the groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def sgd_factor(momentum: float, dampening: float) -> float:
    """Return ``(1 - dampening) / (1 - momentum)``: SGD's total movement per unit of gradient and learning rate (P5)."""
    return (1 - dampening) / (1 - momentum)


def check_momentum(momentum: float, dampening: float) -> None:
    """Raise a ValueError unless ``momentum < 1`` and ``dampening <= 1``, so that ``sgd_factor`` is finite and >= 0."""
    if not momentum < 1:
        raise ValueError(f"momentum={momentum}: must be less than 1 for a scheduled decay")
    if not dampening <= 1:
        raise ValueError(f"dampening={dampening}: must be at most 1 for a scheduled decay")


class AdamScale(NamedTuple):
    """The result of ``adam_scale``: a factor on the strength, and the averages of ``g^2`` that it is computed from."""

    inverse_root: float | Tensor  # 1 / sqrt(V)
    averages: list[tuple[Tensor, float | Tensor, int]]  # (parameter, mean square, updates) per parameter with gradient

    def mean_squares(self) -> dict[Tensor, dict[str, Any]]:
        """Return the averages as ``MeanSquares``: per parameter with a gradient, ``mean_square`` and ``updates``.

        ``mean_square`` is the moving average of ``mean(g^2)``: a number for a whole parameter on the CPU, else a scalar
        tensor. With AMSGrad it is the mean of the maximum of the second moments.
        """
        return {p: {"mean_square": average, "updates": updates} for p, average, updates in self.averages}


def adam_scale(optimizer: torch.optim.Optimizer, memory: MeanSquares) -> AdamScale | None:
    """Return ``1 / sqrt(V)`` and the new averages for the gradients now in ``p.grad``, see :class:`GradientScale`.

    Args:
        optimizer: an optimizer of Adam's kind before its step. Groups of another kind are ignored. For AMSGrad, V is
            computed from the optimizer's second moments instead of ``memory``.
        memory: the averages before this step. A parameter that is not in ``memory`` gets its average from Adam's state.

    Returns:
        None if no parameter of a group of Adam's kind has a gradient.
    """
    total: float | Tensor = 0.0
    count, results = 0, []
    # per (beta2, updates, amsgrad), and so with the same bias correction: the parameters that are processed together
    cohorts: dict[tuple[float, int, bool], list[tuple[Tensor, Any]]] = {}
    for group in optimizer.param_groups:
        if is_adam_group(group):
            beta, amsgrad = as_number(group["betas"][1]), group["amsgrad"]
            for p in group["params"]:
                if (g := p.grad) is None or g.numel() == 0:
                    continue
                before = memory.get(p)
                if before is None or "updates" not in before:
                    before = mean_square_from_adam(optimizer.state.get(p))
                size, updates = g.numel(), before["updates"] + 1
                count += size
                if type(g) is not Tensor or not g.is_cpu:  # on a device or sharded: no value is read in this loop
                    cohorts.setdefault((beta, updates, amsgrad), []).append((p, before["mean_square"]))
                    continue
                if amsgrad:
                    average = _largest_square_sum(p, optimizer, beta).item() / size
                else:
                    average = beta * before["mean_square"] + (1 - beta) * _square_sum(g) / size
                total += average * size / (1 - beta**updates)
                results.append((p, average, updates))
    for (beta, updates, amsgrad), cohort in cohorts.items():
        params, before = zip(*cohort, strict=True)
        sums = _largest_square_sums(params, optimizer, beta) if amsgrad else square_sums([p.grad for p in params])
        sizes = _vector(tuple(p.numel() for p in params), sums.dtype, sums.device)
        averages = sums / sizes
        if not amsgrad:
            averages = moving_average(before, averages, beta)
        total = total + torch.dot(averages, sizes) / (1 - beta**updates)
        results += [(p, average, updates) for p, average in zip(params, averages, strict=True)]
    return AdamScale(_inverse_root(total / count), results) if count else None


def mean_square_from_adam(state: dict[str, Any] | None) -> dict[str, Any]:
    """Return a parameter's ``mean_square`` and ``updates``, computed from Adam's state of the parameter.

    Args:
        state: the optimizer's state of the parameter; both results are 0 if it is None or has no second moment.
    """
    if not state or "exp_avg_sq" not in state:
        return {"mean_square": 0.0, "updates": 0}
    average = state["exp_avg_sq"].mean(dtype=accumulation_dtype(state["exp_avg_sq"].dtype))
    average = average.full_tensor() if is_sharded(average) else average
    return {"mean_square": average.item() if average.device.type == "cpu" else average, "updates": int(state["step"])}


def moving_average(before: Sequence[float | Tensor], squares: Tensor, beta: float) -> Tensor:
    """Return the updated moving averages ``b2 v + (1 - b2) mean(g^2)`` of several parameters, shape (parameters,).

    Args:
        before: ``v`` of each parameter.
        squares: ``mean(g^2)`` of each parameter, shape (parameters,).
        beta: ``b2``.
    """
    vector = torch.stack([v if isinstance(v, Tensor) else squares.new_full((), v) for v in before])
    return beta * vector.to(squares) + (1 - beta) * squares


@functools.lru_cache(maxsize=64)
def _vector(numbers: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor on a device, without waiting for the device. Cached, since every step needs it."""
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)


def _square_sum(g: Tensor) -> float:
    """Return ``sum(g^2)`` of a CPU tensor, without an overflow or underflow of the tensor's own type."""
    if g.is_contiguous() and g.dtype.itemsize >= 4:
        flat = g if g.dim() == 1 else g.view(-1)
        if math.isfinite(total := torch.dot(flat, flat).item()):
            return total  # else the sum exceeds the type's range, although Adam's moments may be within the range
    return torch.linalg.vector_norm(g, dtype=torch.float64).item() ** 2


def _largest_square_sum(p: Tensor, optimizer: torch.optim.Optimizer, beta: float) -> Tensor:
    """Return the sum of AMSGrad's ``max(max_exp_avg_sq, b2 exp_avg_sq + (1 - b2) g^2)`` over the local shard of ``p``.

    The result is a scalar tensor. ``g`` is ``p.grad``, the other terms are the optimizer's state before the step.
    """
    state, (g,) = optimizer.state.get(p) or {}, local_shards([p.grad])
    squares = g.square().mul_(1 - beta)
    if state:
        old, largest = local_shards([state["exp_avg_sq"], state["max_exp_avg_sq"]])
        squares = torch.maximum(largest, squares.add_(old, alpha=beta))
    return squares.sum(dtype=accumulation_dtype(squares.dtype))


def _largest_square_sums(params: Sequence[Tensor], optimizer: torch.optim.Optimizer, beta: float) -> Tensor:
    """Return ``_largest_square_sum`` of each parameter over all its shards, shape (parameters,)."""
    return over_shards(params, torch.stack([_largest_square_sum(p, optimizer, beta) for p in params]))


def _inverse_root(v: float | Tensor) -> float | Tensor:
    """Return ``1 / sqrt(v)`` for ``v > 0``, else 0."""
    if isinstance(v, Tensor):
        return torch.where(v > 0, v.rsqrt(), torch.zeros_like(v))
    return 1 / math.sqrt(v) if v > 0 else 0.0
