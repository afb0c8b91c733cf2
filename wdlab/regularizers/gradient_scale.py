"""Scheduled weight decay (P5): the strength over time that follows the scale of the gradients.

Xie et al. 2020/2023, arXiv 2011.11152. Used by ``ScheduledDecay`` and by the optimizers AdamS and SGDS.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wdlab.foreach import is_sharded, local, over_shards, square_sums, wide
from wdlab.regularizers.checks import is_adam, is_sgd
from wdlab.regularizers.over_time import OverTime

if TYPE_CHECKING:
    from wdlab.regularizers.base import Regularizer

Memory = Callable[[Tensor], dict[str, Any]]  # what is remembered of a parameter


class GradientScale(OverTime):
    """The factor that makes a decay a *scheduled* one.  [grade A: released AdamS and SGDS, step by step]

    With Adam, AdamW and AMSGrad it is ``1 / sqrt(V)``, with ``V`` the mean of all elements of the bias-corrected second
    moment after this step's gradient (AMSGrad: of its maximum), over all parameters of the optimizer that have a
    gradient. The mean of a moving average is a scalar moving average of means, ``v <- b2 v + (1 - b2) mean(g^2)``,
    kept per parameter, so that V costs one norm of the gradients. With SGD the factor is ``(1 - dampening) / (1 -
    momentum)``.

    ``V`` is what the optimizer makes of the gradient of the loss; it is taken before any penalty is added to it. Where
    V is 0 there is no scale to follow and the factor is 0. On the CPU the factor is a number, elsewhere a scalar
    tensor, so that no step waits for the device.

    Raises:
        ValueError: at ``attach``, for an optimizer that is neither of Adam's nor of SGD's kind.
    """

    def __init__(self) -> None:
        self._memory: dict[Tensor, dict[str, Any]] = {}
        self._order: list[Tensor] = []  # the optimizer's parameters, by which the state is saved
        self._loaded: list[dict[str, Any]] = []
        self._inverse_root: float | Tensor = 1.0

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            if is_sgd(group):
                check_momentum(group["momentum"])
            elif not is_adam(group):
                raise ValueError(f"GradientScale: needs Adam, AdamW or SGD, got {type(optimizer).__name__}")

    def look(self, method: "Regularizer") -> None:
        optimizer = method.optimizer
        self._order = [p for group in optimizer.param_groups for p in group["params"]]
        for p, state in zip(self._order, self._loaded, strict=False):
            self._memory[p] = state
        self._loaded = []
        scale = adam_scale(optimizer, lambda p: self._memory.get(p) or from_adam(optimizer.state.get(p)))
        if scale is not None:
            self._inverse_root = scale.inverse_root
            self._memory |= scale.memories()

    def factor(self, step: int, optimizer_group: dict[str, Any]) -> float | Tensor:
        if is_sgd(optimizer_group):
            return sgd_factor(optimizer_group["momentum"], optimizer_group["dampening"])
        return self._inverse_root

    def state_dict(self) -> dict[str, Any]:
        memories = [dict(self._memory.get(p, {})) for p in self._order] if self._order else self._loaded
        return {"memory": memories, "inverse_root": self._inverse_root}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._memory, self._order = {}, []
        self._loaded = [dict(memory) for memory in state["memory"]]
        self._inverse_root = state["inverse_root"]


def sgd_factor(momentum: float, dampening: float) -> float:
    """``(1 - dampening) / (1 - momentum)``: how far SGD moves in the end for one unit of gradient (P5)."""
    return (1 - dampening) / (1 - momentum)


def check_momentum(momentum: float) -> None:
    """Raise a ValueError unless it is below 1, where the factor of SGD is finite."""
    if not momentum < 1:
        raise ValueError(f"momentum={momentum}: must be less than 1 for a scheduled decay")


class Scale:
    """What ``adam_scale`` finds: the inverse root of V, and what to remember of each parameter."""

    def __init__(self, inverse_root: float | Tensor, groups: list[tuple[list[Tensor], Any, int]]) -> None:
        self.inverse_root = inverse_root
        self._groups = groups

    def memories(self) -> dict[Tensor, dict[str, Any]]:
        """Of each parameter with a gradient ``mean_square``, the moving average (a number on the CPU, a scalar tensor
        elsewhere), and ``updates``."""
        return {
            p: {"mean_square": average, "updates": updates}
            for params, averages, updates in self._groups
            for p, average in zip(params, averages, strict=True)
        }


def adam_scale(optimizer: torch.optim.Optimizer, memory: Memory) -> Scale | None:
    """``1 / sqrt(V)`` of an optimizer of Adam's kind for the gradients now in place; None if there is none.

    Args:
        optimizer: before its step. AMSGrad's V is read from its buffers.
        memory: what was remembered of a parameter, {} at first.
    """
    cohorts: dict[tuple[float, int, bool], list[Tensor]] = {}  # parameters with one bias correction
    for group in optimizer.param_groups:
        if is_adam(group):
            beta, amsgrad = group["betas"][1], group["amsgrad"]
            for p in group["params"]:
                if p.grad is not None:
                    cohorts.setdefault((beta, memory(p).get("updates", 0) + 1, amsgrad), []).append(p)
    if not cohorts:
        return None
    total: float | Tensor = 0.0
    count, kept = 0, []
    for (beta, updates, amsgrad), params in cohorts.items():
        sizes = [p.numel() for p in params]
        if amsgrad:
            averages = _largest_mean_squares(params, optimizer, beta)
        else:
            squares = mean_squares([p.grad for p in params])
            before = [memory(p).get("mean_square", 0.0) for p in params]
            averages = moving_average(before, squares, beta)
        total = total + _weighted_sum(averages, sizes) / (1 - beta**updates)
        count += sum(sizes)
        kept.append((params, averages, updates))
    return Scale(_inverse_root(total / count), kept)


def from_adam(state: dict[str, Any] | None) -> dict[str, Any]:
    """What would have been remembered of a parameter, from Adam's own state of it; {} if it has none."""
    if not state or "exp_avg_sq" not in state:
        return {}
    average = state["exp_avg_sq"].mean(dtype=wide(state["exp_avg_sq"].dtype))
    average = average.full_tensor() if is_sharded(average) else average
    return {"mean_square": average.item() if average.device.type == "cpu" else average, "updates": int(state["step"])}


def moving_average(before: list[float] | list[Tensor], squares: list[float] | Tensor, beta: float) -> Any:
    """``b2 v + (1 - b2) mean(g^2)`` for each parameter; numbers for numbers, a vector for a vector."""
    if isinstance(squares, Tensor):
        vector = torch.stack([v if isinstance(v, Tensor) else squares.new_full((), v) for v in before])
        return beta * vector.to(squares) + (1 - beta) * squares
    return [beta * v + (1 - beta) * square for v, square in zip(before, squares, strict=True)]


def mean_squares(gradients: Sequence[Tensor]) -> list[float] | Tensor:
    """``mean(g^2)`` of each gradient: numbers if they are on the CPU and whole, else a vector on their device."""
    if all(g.device.type == "cpu" and not is_sharded(g) for g in gradients):
        return [_square_sum(g) / g.numel() for g in local(gradients)]
    sums = square_sums(gradients)
    return sums / _vector(tuple(g.numel() for g in gradients), sums.dtype, sums.device)


@functools.lru_cache(maxsize=64)
def _vector(numbers: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept, since bringing numbers to a device waits for it."""
    return torch.tensor(numbers, dtype=dtype, device=device)


def _square_sum(g: Tensor) -> float:
    if g.is_contiguous() and g.dtype.itemsize >= 4:
        flat = g.view(-1)
        return torch.dot(flat, flat).item()
    return torch.linalg.vector_norm(g, dtype=wide(g.dtype)).item() ** 2


def _largest_mean_squares(params: list[Tensor], optimizer: torch.optim.Optimizer, beta: float) -> list[float] | Tensor:
    """AMSGrad: mean of ``max(max_exp_avg_sq, b2 exp_avg_sq + (1 - b2) g^2)``, as the step will have it."""
    sums = []
    for p in params:
        state, (g,) = optimizer.state.get(p) or {}, local([p.grad])
        squares = g.square().mul_(1 - beta)
        if state:
            old, largest = local([state["exp_avg_sq"], state["max_exp_avg_sq"]])
            squares = torch.maximum(largest, squares.add_(old, alpha=beta))
        sums.append(squares.sum(dtype=wide(squares.dtype)))
    if all(p.device.type == "cpu" and not is_sharded(p) for p in params):
        return [s.item() / p.numel() for s, p in zip(sums, params, strict=True)]
    vector = over_shards(params, torch.stack(sums))
    return vector / _vector(tuple(p.numel() for p in params), vector.dtype, vector.device)


def _weighted_sum(averages: list[float] | Tensor, sizes: list[int]) -> float | Tensor:
    if isinstance(averages, Tensor):
        return torch.dot(averages, _vector(tuple(sizes), averages.dtype, averages.device))
    return sum(map(float.__mul__, averages, map(float, sizes)))


def _inverse_root(v: float | Tensor) -> float | Tensor:
    if isinstance(v, Tensor):
        return torch.where(v > 0, v.rsqrt(), torch.zeros_like(v))
    return 1 / math.sqrt(v) if v > 0 else 0.0
