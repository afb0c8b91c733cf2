"""The factor of scheduled weight decay (P5): a strength that follows the scale of the gradients.

Xie et al. 2020/2023, arXiv 2011.11152. Used by ``ScheduledDecay`` and by the optimizers AdamS and SGDS.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wdlab.regularizers.checks import as_number, is_adam_group, is_sgd_group
from wdlab.regularizers.over_time import Observed, OverTime
from wdlab.schedules import Clock
from wdlab.tensors import accumulation_dtype, is_sharded, local_shards, over_shards, square_sums

MeanSquares = Mapping[Tensor, Mapping[str, Any]]  # ``mean_square`` and ``updates`` of each parameter so far


class GradientScale(OverTime):
    """The factor of scheduled weight decay.

    [grade A: released AdamS and SGDS, step by step]

    With Adam, AdamW and AMSGrad it is ``1 / sqrt(V)``, with ``V`` the mean of all elements of the bias-corrected second
    moment after this step's gradient (AMSGrad: of its maximum), over all parameters of the optimizer that have a
    gradient. The mean of a moving average is a scalar moving average of means, ``v <- b2 v + (1 - b2) mean(g^2)``,
    kept per parameter, so that V costs one norm of the gradients. With SGD the factor is ``(1 - dampening) / (1 -
    momentum)``.

    ``V`` is made of the gradient of the loss alone, before any penalty is added to it. Where V is 0 the factor is 0. On
    the CPU the factor is a number, elsewhere a scalar tensor, so that no step waits for the device.

    Raises:
        ValueError: at ``attach``, for an optimizer that is neither of Adam's nor of SGD's kind.
    """

    observes_gradients = True

    def __init__(self) -> None:
        self._memory: dict[Tensor, dict[str, Any]] = {}
        self._order: list[Tensor] = []  # the optimizer's parameters, by which the state is saved
        self._loaded: list[dict[str, Any]] = []
        self._inverse_root: float | Tensor = 1.0

    def check(self, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
        for group in optimizer.param_groups:
            if is_sgd_group(group):
                check_momentum(group["momentum"], group["dampening"])
            elif not is_adam_group(group):
                raise ValueError(f"GradientScale: needs Adam, AdamW or SGD, got {type(optimizer).__name__}")

    def obstacle_to_stacking(self, optimizer: torch.optim.Optimizer) -> str | None:
        return None if is_sgd_group(optimizer.param_groups[0]) else super().obstacle_to_stacking(optimizer)

    def observe(self, method: Observed) -> None:
        optimizer = method.optimizer
        self._order = [p for group in optimizer.param_groups for p in group["params"]]
        memory = dict(zip(self._order, self._loaded, strict=False)) if self._loaded else self._memory
        self._loaded = []
        kept = (p for p in self._order if p in memory)  # of a parameter that was replaced, nothing is kept
        self._memory = {p: memory[p] for p in kept if not self._is_stale(memory[p], optimizer.state.get(p))}
        scale = adam_scale(optimizer, self._memory)
        if scale is not None:
            self._inverse_root = scale.inverse_root
            self._memory |= scale.memories()

    @staticmethod
    def _is_stale(memory: Mapping[str, Any], state: Mapping[str, Any] | None) -> bool:
        """Return True if Adam's step count differs from the remembered one.

        It does after steps that were taken while the method was detached, and after a state was loaded. It is not
        checked on a GPU, since the step would have to wait for it.
        """
        step = (state or {}).get("step", 0)
        return not (isinstance(step, Tensor) and not step.is_cpu) and int(step) != memory.get("updates", 0)

    def factor(self, step: int, optimizer_group: dict[str, Any], clock: Clock = Clock()) -> float | Tensor:  # noqa: B008
        if is_sgd_group(optimizer_group):
            return sgd_factor(as_number(optimizer_group["momentum"]), as_number(optimizer_group["dampening"]))
        return self._inverse_root

    def state_dict(self) -> dict[str, Any]:
        memories = [dict(self._memory.get(p, {})) for p in self._order] if self._order else self._loaded
        return {"memory": memories, "inverse_root": self._inverse_root}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._memory, self._order = {}, []
        self._loaded = [dict(memory) for memory in state["memory"]]
        self._inverse_root = state["inverse_root"]


def sgd_factor(momentum: float, dampening: float) -> float:
    """Return ``(1 - dampening) / (1 - momentum)``, the distance that SGD moves in the end per unit of gradient (P5)."""
    return (1 - dampening) / (1 - momentum)


def check_momentum(momentum: float, dampening: float) -> None:
    """Raise a ValueError unless the factor of SGD is finite and not negative."""
    if not momentum < 1:
        raise ValueError(f"momentum={momentum}: must be less than 1 for a scheduled decay")
    if not dampening <= 1:
        raise ValueError(f"dampening={dampening}: must be at most 1 for a scheduled decay")


class Scale(NamedTuple):
    """The result of ``adam_scale``."""

    inverse_root: float | Tensor  # 1 / sqrt(V)
    averages: list[tuple[Tensor, float | Tensor, int]]  # per parameter with a gradient: mean square, updates

    def memories(self) -> dict[Tensor, dict[str, Any]]:
        """Return ``mean_square`` and ``updates`` of each parameter with a gradient.

        ``mean_square`` is the moving average, a number on the CPU and a scalar tensor elsewhere.
        """
        return {p: {"mean_square": average, "updates": updates} for p, average, updates in self.averages}


def adam_scale(optimizer: torch.optim.Optimizer, memory: MeanSquares) -> Scale | None:
    """Return ``1 / sqrt(V)`` of an optimizer of Adam's kind for the present gradients; None if there are no gradients.

    Args:
        optimizer: before its step. AMSGrad's V is read from its buffers.
        memory: the averages so far. For a parameter that is not in it they are taken from Adam's own state.
    """
    total: float | Tensor = 0.0
    count, found = 0, []
    cohorts: dict[tuple[float, int, bool], list[tuple[Tensor, Any]]] = {}  # of one bias correction: to be done together
    for group in optimizer.param_groups:
        if is_adam_group(group):
            beta, amsgrad = as_number(group["betas"][1]), group["amsgrad"]
            for p in group["params"]:
                if (g := p.grad) is None or g.numel() == 0:
                    continue
                before = memory.get(p)
                if before is None or "updates" not in before:
                    before = from_adam(optimizer.state.get(p))
                size, updates = g.numel(), before["updates"] + 1
                count += size
                if type(g) is not Tensor or not g.is_cpu:  # on a device, or sharded: there nothing is read
                    cohorts.setdefault((beta, updates, amsgrad), []).append((p, before["mean_square"]))
                    continue
                if amsgrad:
                    average = _largest_square_sum(p, optimizer, beta).item() / size
                else:
                    average = beta * before["mean_square"] + (1 - beta) * _square_sum(g) / size
                total += average * size / (1 - beta**updates)
                found.append((p, average, updates))
    for (beta, updates, amsgrad), cohort in cohorts.items():
        params, before = zip(*cohort, strict=True)
        sums = _largest_square_sums(params, optimizer, beta) if amsgrad else square_sums([p.grad for p in params])
        sizes = _vector(tuple(p.numel() for p in params), sums.dtype, sums.device)
        averages = sums / sizes
        if not amsgrad:
            averages = moving_average(before, averages, beta)
        total = total + torch.dot(averages, sizes) / (1 - beta**updates)
        found += [(p, average, updates) for p, average in zip(params, averages, strict=True)]
    return Scale(_inverse_root(total / count), found) if count else None


def from_adam(state: dict[str, Any] | None) -> dict[str, Any]:
    """Return the averages of a parameter as they follow from Adam's own state."""
    if not state or "exp_avg_sq" not in state:
        return {"mean_square": 0.0, "updates": 0}
    average = state["exp_avg_sq"].mean(dtype=accumulation_dtype(state["exp_avg_sq"].dtype))
    average = average.full_tensor() if is_sharded(average) else average
    return {"mean_square": average.item() if average.device.type == "cpu" else average, "updates": int(state["step"])}


def moving_average(before: Sequence[float | Tensor], squares: Tensor, beta: float) -> Tensor:
    """Return ``b2 v + (1 - b2) mean(g^2)`` for each parameter, as a vector."""
    vector = torch.stack([v if isinstance(v, Tensor) else squares.new_full((), v) for v in before])
    return beta * vector.to(squares) + (1 - beta) * squares


@functools.lru_cache(maxsize=64)
def _vector(numbers: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the numbers as a tensor on a device, without waiting for the device. Cached for the next steps."""
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)


def _square_sum(g: Tensor) -> float:
    if g.is_contiguous() and g.dtype.itemsize >= 4:
        flat = g if g.dim() == 1 else g.view(-1)
        if math.isfinite(total := torch.dot(flat, flat).item()):
            return total  # else the sum is out of the type's range, while Adam's moments may be in it
    return torch.linalg.vector_norm(g, dtype=torch.float64).item() ** 2


def _largest_square_sum(p: Tensor, optimizer: torch.optim.Optimizer, beta: float) -> Tensor:
    """Return the sum of AMSGrad's ``max(max_exp_avg_sq, b2 exp_avg_sq + (1 - b2) g^2)`` over the local shard."""
    state, (g,) = optimizer.state.get(p) or {}, local_shards([p.grad])
    squares = g.square().mul_(1 - beta)
    if state:
        old, largest = local_shards([state["exp_avg_sq"], state["max_exp_avg_sq"]])
        squares = torch.maximum(largest, squares.add_(old, alpha=beta))
    return squares.sum(dtype=accumulation_dtype(squares.dtype))


def _largest_square_sums(params: Sequence[Tensor], optimizer: torch.optim.Optimizer, beta: float) -> Tensor:
    return over_shards(params, torch.stack([_largest_square_sum(p, optimizer, beta) for p in params]))


def _inverse_root(v: float | Tensor) -> float | Tensor:
    if isinstance(v, Tensor):
        return torch.where(v > 0, v.rsqrt(), torch.zeros_like(v))
    return 1 / math.sqrt(v) if v > 0 else 0.0
