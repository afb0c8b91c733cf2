"""Decoupled decay with magnitude pruning, the rival of p-norm weight decay in P2 (arXiv 2404.10824)."""

import bisect
import functools
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from wdlab.regularizers.base import Params, Schedules
from wdlab.regularizers.checks import as_number, check_choice, check_number
from wdlab.regularizers.decoupled import DecoupledDecay
from wdlab.regularizers.runs import gathered
from wdlab.tensors import is_sharded, local_shards

RAMPS = {"cubic": lambda done: 1 - (1 - done) ** 3, "linear": lambda done: done}


class MagnitudePruning(DecoupledDecay):
    """Decoupled decay ``w *= 1 - lr * s`` with magnitude pruning: the smallest weights become zero and stay zero.

    [grade B]

    The decay is that of :class:`DecoupledDecay`, so with torch's Adam this is AdamW, pruned. There are ``times``
    prunings at equal distances, pruning k after update ``steps (begin + (end - begin) k / times)``, rounded. A pruning
    sets the weights with the smallest ``|w|`` among all tensors together to zero; after every later update they are set
    to zero again. After pruning k the share of zeros is ``zeros (1 - (1 - k / times)^3)``, the cubic ramp of Zhu and
    Gupta 2017 (arXiv 1710.01878), rounded to a whole number of weights: most weights are pruned early, while many are
    left that can replace them. Of equally small weights those that come first in ``params`` are pruned.

    The learning rate multiplies the decay. The pruning depends on neither the learning rate, the strength nor
    ``over_time``: strength 0 switches off the decay, ``zeros=0`` the pruning. The optimizer's moments are not changed.
    A tensor that has no gradient in the step of a pruning is left out of this pruning. Sharded weights are refused,
    since a pruning compares all weights.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
        zeros: share of the weights that is zero after the last pruning, in [0, 1).
        times: number of prunings, a whole number >= 1. If several fall into one step, the last of them takes place.
        begin: share of the run after which the prunings begin, >= 0. The defaults of ``times``, ``begin`` and ``end``
            are those of P2's author: 40 prunings from the end of the warm-up, epoch 2 of 100, to epoch 70.
        end: share of the run after which the last pruning takes place, greater than ``begin`` and at most 1.
        ramp: ``cubic``, or ``linear`` for the share ``zeros * k / times`` after pruning k.
        steps: length of the run in updates; None for the length in the method's ``clock``, which ``wdlab.train`` sets.
        cautious: as in :class:`DecoupledDecay`; for the decay, not for the pruning.

    Raises:
        ValueError: for an argument out of its range, or a negative or non-finite strength; at ``attach``, for sharded
            weights, or if the length of the run is unknown.
    """

    stackable = True

    def __init__(
        self,
        params: Params,
        strength: float,
        zeros: float = 0.9,
        times: int = 40,
        begin: float = 0.02,
        end: float = 0.7,
        ramp: str = "cubic",
        steps: int | None = None,
        over_time: Schedules = None,
        cautious: bool = False,
    ) -> None:
        self.zeros = check_number("zeros", zeros, lowest=0.0)
        if self.zeros >= 1:
            raise ValueError(f"zeros={zeros}: must be less than 1")
        self.times = _check_count("times", times)
        self.begin, self.end = check_number("begin", begin, lowest=0.0), check_number("end", end, above=0.0)
        if self.end > 1:
            raise ValueError(f"end={end}: must be at most 1, a share of the run")
        if self.begin >= self.end:
            raise ValueError(f"begin={begin}: must be less than end={end}")
        self.ramp = check_choice("ramp", ramp, tuple(RAMPS))
        self.steps = None if steps is None else _check_count("steps", steps)
        self._pruned: dict[int, Tensor] = {}  # mask of the pruned weights, by the parameter's index in ``params``
        super().__init__(params, strength, over_time, cautious)

    @property
    def is_off(self) -> bool:
        """True if the method does nothing: all its strengths are 0, and so is ``zeros``."""
        return super().is_off and self.zeros == 0

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if self.zeros > 0 and self._length is None:
            raise ValueError(f"{type(self).__name__}: needs the length of the run in updates; give it as steps")
        if any(is_sharded(p) for p in self.params):
            raise ValueError(f"{type(self).__name__}: cannot prune sharded weights, since it compares all weights")

    @property
    def _length(self) -> int | None:
        return self.clock.steps if self.steps is None else self.steps

    def describe(self) -> str:
        """Return the text of ``Regularizer.describe``, with the pruning in its first line."""
        decay, *rows = super().describe().splitlines()
        span = f"between {100 * self.begin:g} and {100 * self.end:g} % of the run"
        pruning = f", pruned to {100 * self.zeros:g} % zeros {span}" if self.zeros else ""
        return "\n".join([decay + pruning, *rows])

    def after_step(self) -> None:
        super().after_step()
        share = self.share_after(self.updates + 1)
        tensors = [t for section in self.sections() for t in section.params] if share else []
        if not tensors:
            return
        index = {id(t): i for i, t in enumerate(self.tensors)}
        places, weights = [index[id(t)] for t in tensors], local_shards(tensors)
        if share > self.share_after(self.updates):
            none = [torch.zeros_like(w, dtype=torch.bool) for w in weights]
            masks = [self._pruned.get(i, mask) for i, mask in zip(places, none, strict=True)]
            masks = with_smallest(masks, weights, share, self.view.runs or 1)
            self._pruned |= dict(zip(places, masks, strict=True))
        for i, w in zip(places, weights, strict=True):
            if i in self._pruned:
                w.masked_fill_(self._pruned[i], 0)

    def share_after(self, updates: int) -> float:
        """Return the share of the weights that has been pruned after so many updates, in [0, ``zeros``]."""
        if self.zeros == 0:
            return 0.0
        done = bisect.bisect_right(pruning_steps(self._length, self.times, self.begin, self.end), updates)
        return self.zeros * RAMPS[self.ramp](done / self.times)

    def gather_runs(self, runs: Sequence[Self]) -> None:
        super().gather_runs(runs)
        self._pruned = {}
        for i, (p, t) in enumerate(zip(self.params, self.tensors, strict=True)):
            if any(i in run._pruned for run in runs):
                none = torch.zeros_like(p, dtype=torch.bool)
                masks = [run._pruned.get(i, none) for run in runs]
                self._pruned[i] = gathered(masks, torch.empty_like(t, dtype=torch.bool))

    def scatter_runs(self, runs: Sequence[Self]) -> None:
        super().scatter_runs(runs)
        for row, run in enumerate(runs):
            run._pruned = {i: mask[row].reshape(self.params[i].shape) for i, mask in self._pruned.items()}

    def state_dict(self) -> dict[str, Any]:
        masks = {i: mask.clone() for i, mask in self._pruned.items()}
        return super().state_dict() | ({"pruned": masks} if masks else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        masks = state.get("pruned", {})
        self._pruned = {i: mask.to(self.params[i].device, copy=True) for i, mask in masks.items()}


def _check_count(name: str, value: Any) -> int:
    """Return ``value`` as a Python int; raise a ValueError unless it is a whole number >= 1."""
    value = as_number(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: must be a whole number >= 1")
    return value


@functools.cache
def pruning_steps(steps: int, times: int, begin: float, end: float) -> tuple[int, ...]:
    """Return the numbers of the updates after which the prunings take place, in increasing order, (times,).

    In a short run several prunings may fall into one update, whose number is repeated then.

    Args:
        steps: length of the run in updates.
        times: number of prunings.
        begin: share of the run after which the prunings begin. Pruning 1 takes place a distance after it.
        end: share of the run after which the last pruning takes place.
    """
    return tuple(max(1, round(steps * (begin + (end - begin) * k / times))) for k in range(1, times + 1))


def with_smallest(masks: Sequence[Tensor], weights: Sequence[Tensor], share: float, runs: int = 1) -> list[Tensor]:
    """Return masks to which the smallest weights of all tensors together are added.

    Args:
        masks: bool tensors in the shapes of ``weights``, True for weights that are pruned already.
        weights: the tensors; for a stack of runs (runs, ...), where each run has smallest weights of its own.
        share: share of the weights that is True in the result, rounded to a whole number of weights. If more are True
            already, none is added.
        runs: number of runs; 1 for tensors that are not of a stack.
    """
    rows = [w.abs().masked_fill(mask, -1).reshape(runs, -1) for w, mask in zip(weights, masks, strict=True)]
    sizes = torch.cat(rows, dim=1)
    smallest = sizes.argsort(dim=1, stable=True)[:, : round(share * sizes.shape[1])]
    chosen = torch.zeros_like(sizes, dtype=torch.bool).scatter_(1, smallest, True)
    parts = chosen.split([row.shape[1] for row in rows], dim=1)
    return [mask | part.reshape(mask.shape) for mask, part in zip(masks, parts, strict=True)]
