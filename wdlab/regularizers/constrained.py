"""Constrained parameter regularization (CPR): each weight tensor has a bound on its mean square, and a multiplier."""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from wdlab.regularizers.base import Params, Schedules
from wdlab.regularizers.cautious import CanBeCautious
from wdlab.regularizers.checks import check_choice, check_number
from wdlab.regularizers.runs import square_sums_of_runs
from wdlab.tensors import is_per_run, local_shards, square_sums

KAPPAS = ("warm_start", "inflection")
SMALLEST_GROWTH = 0.01  # relative growth between two samples below which no bound is set, as in the released code


class ConstrainedRegularization(CanBeCautious):
    """Constrained parameter regularization, CPR: decay only of those weight tensors that exceed a bound of their own.

    [grade A: released AdamCPR, step by step]

    Franke et al., NeurIPS 2024, arXiv 2311.09058. Each tensor has a bound ``kappa`` on ``R(u)``, the mean of ``u^2``
    over its elements, and a Lagrange multiplier ``m``, at first 0. After each step of any optimizer, which results in
    the weights ``u``, there is an update ``m = max(0, m + R(u) - kappa)`` and a decay ``w = u (1 - 2 s m)``, whose
    factor is replaced by 0 where it would be negative. Before ``kappa`` is set, nothing is decayed.

    This is the rule of the released AdamCPR (``pytorch-cpr`` 0.3.1, ``reg_function="l2"``, with ``foreach``). Its
    ``lagmul`` is ``s m`` here, and its ``kappa_update`` is ``s``, 1 in the paper. There mu multiplies the update of the
    multiplier lambda. Here ``lambda = s m``, which is the same for a constant strength; a strength that changes over
    time acts at once on the whole multiplier. The learning rate does not multiply the decay, as by default in the
    release. ``kappa`` is set in one of two ways:

    - ``warm_start``: to ``R(u)`` after ``warm_start`` updates.
    - ``inflection``: to ``R(u)`` when the growth of the tensor's norm slows down. A moving average of the norm, over
      ``every / 2`` updates, is sampled each ``every`` updates. The bound is set at the first sample at which the
      relative growth since the last sample is smaller than it was at the last sample, and above 1 %. There is no bound
      before update ``4 every``.

    In a step whose strength is 0, by ``over_time``, neither multipliers nor bounds are changed.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`. The strength is the learning rate of
            the multipliers, mu in the paper, by default 1.
        kappa: ``warm_start`` or ``inflection``.
        warm_start: a whole number of updates, >= 1; or if less than 1 a share of the run, > 0, rounded to whole
            updates. The length of the run is that of the method's ``clock``, which ``wdlab.train`` sets. In your own
            loop, where the length is unknown, a share is refused; give a number of updates.
        every: a whole number of updates, >= 2, or a share of the run, as ``warm_start``.
        cautious: True to decay only weights that the optimizer's update does not move away from zero, as in
            :class:`wdlab.regularizers.DecoupledDecay`.

    Raises:
        ValueError: for an argument out of its range, or a negative or non-finite strength; at ``attach``, for a share
            if the length of the run is unknown, and if the run is too short for a decay.
    """

    stackable = True
    times_lr = False

    def __init__(
        self,
        params: Params,
        strength: float = 1.0,
        kappa: str = "warm_start",
        warm_start: float = 0.1,
        every: float = 200,
        over_time: Schedules = None,
        cautious: bool = False,
    ) -> None:
        self.kappa = check_choice("kappa", kappa, KAPPAS)
        self.warm_start = check_number("warm_start", warm_start, above=0.0)
        self.every = check_number("every", every, above=0.0)
        if 1 <= self.every < 2:
            raise ValueError(f"every={every}: must be at least 2 updates, or a share of the run less than 1")
        for name in ("warm_start", "every"):
            if (given := getattr(self, name)) >= 1 and given != int(given):
                raise ValueError(f"{name}={given}: must be a whole number of updates, or less than 1, a share")
        # by the parameter's index in ``params``: multiplier, bound (infinite until it is set), and for ``inflection``
        # the average root mean square, its value and its growth at the last sample; float64 (5,), or (5, runs)
        self._states: dict[int, Tensor] = {}
        super().__init__(params, strength, over_time, cautious)

    @classmethod
    def for_model(cls, model: nn.Module, strength: float = 1.0, scope: str = "weights", **options: Any) -> Self:
        """Create the method for a whole model, as ``Regularizer.for_model``, by default with strength 1."""
        return super().for_model(model, strength, scope, **options)

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if self.is_off:
            return
        name, samples = ("warm_start", 1) if self.kappa == "warm_start" else ("every", 4)
        given, length = getattr(self, name), self.clock.steps
        if given < 1 and length is None:
            raise ValueError(f"{name}={given}: a share of the run needs its length; give a number of updates")
        first = samples * self._updates(given) + 1
        if length is not None and first > length:
            raise ValueError(f"{name}={given}: nothing is decayed before update {first}, and the run has {length}")

    def _updates(self, given: float) -> int:
        """Return ``warm_start`` or ``every``, which may be given as a share of the run, in updates."""
        return max(1 if self.kappa == "warm_start" else 2, round(given if given >= 1 else given * self.clock.steps))

    def describe(self) -> str:
        """Return the text of ``Regularizer.describe``, with the choice of the bounds in its first line."""
        first, *rows = super().describe().splitlines()
        how, given = ("after", self.warm_start) if self.kappa == "warm_start" else ("by inflection, every", self.every)
        bounds = f"bounds {how} " + (f"{given:g} updates" if given >= 1 else f"{100 * given:g} % of the run")
        return "\n".join([first if self.is_off else f"{first}, {bounds}", *rows])

    def after_step(self) -> None:
        if self.kappa == "warm_start" and self.updates + 1 < self._updates(self.warm_start):
            return
        index = {id(t): i for i, t in enumerate(self.tensors)}
        for part in self.active_groups():
            places = [index[id(t)] for t in part.params]
            squares = self._mean_squares(part.params, places)
            pairs = zip(places, squares, strict=True)
            old = torch.stack([self._states[i] if i in self._states else new_state(x) for i, x in pairs])
            states = self._updated(old, squares)
            strength = part.strength
            if isinstance(strength, Tensor):
                strength = strength.flatten() if is_per_run(strength) else strength
                states = torch.where(strength != 0, states, old)
            shares = (1 - 2 * strength * states[:, 0]).clamp(min=0)
            self._states = self._states | dict(zip(places, states.unbind(), strict=True))
            weights = local_shards(part.params)
            factors = [as_factor(share, w) for share, w in zip(shares, weights, strict=True)]
            if self.cautious:
                new = [w * factor for w, factor in zip(weights, factors, strict=True)]
                torch._foreach_copy_(weights, self.where_allowed(part.params, new))
            else:
                torch._foreach_mul_(weights, factors)

    def _mean_squares(self, params: Sequence[Tensor], places: Sequence[int]) -> Tensor:
        """Return the mean of the squares of each tensor, float64 (tensors,), or for a stack (tensors, runs).

        Args:
            params: the tensors.
            places: the index of each tensor's parameter in ``params`` of the method.
        """
        sums = square_sums(params).double() if self.view.runs is None else square_sums_of_runs(params)
        return torch.stack(torch._foreach_div(sums.unbind(), [max(1, self.params[i].numel()) for i in places]))

    def _updated(self, states: Tensor, squares: Tensor) -> Tensor:
        """Return the states of some tensors after this step, in which a bound may be set.

        Args:
            states: the states before, (tensors, 5), or for a stack (tensors, 5, runs).
            squares: the mean of the squares of each tensor, (tensors,) or (tensors, runs).
        """
        multipliers, kappas, average, last, last_growth = states.unbind(1)
        multipliers = (multipliers + (squares - kappas)).nan_to_num(nan=0.0).clamp(min=0)
        if self.kappa == "warm_start":
            kappas = torch.where(kappas.isinf(), squares, kappas)
        else:
            step, every = self.updates + 1, self._updates(self.every)
            average = average + 2 / every * (squares.sqrt() - average) if step >= every else squares.sqrt()
            if step > every and step % every == 0:
                growth = (average - last) / average
                slows_down = (last_growth > growth) & (growth > SMALLEST_GROWTH)
                kappas = torch.where(kappas.isinf() & slows_down, squares, kappas)
                last, last_growth = average, growth
        return torch.stack([multipliers, kappas, average, last, last_growth], dim=1)

    def penalty(self) -> Tensor:
        """Return the sum of ``s m |w|^2`` over the tensors, with the multipliers of now, as a scalar tensor."""
        strengths = [group["strength"] for group in self.groups for _ in group["params"]]
        squares = square_sums(self.params).double() * self._of_all()[:, 0]
        return sum(s * square for s, square in zip(strengths, squares, strict=True))

    def penalty_gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        tensor = self._bound.tensor if self.is_attached else lambda w: w
        of = {id(tensor(p)): 2 * state[0] for p, state in zip(self.params, self._of_all(), strict=True)}
        factors = [of[id(p)] for p in params]
        weights = local_shards(params)
        return [w * as_factor(factor, w) for factor, w in zip(factors, weights, strict=True)]

    def metrics(self) -> dict[str, Tensor]:
        """Return the share of active constraints and the mean multiplier, as scalar tensors, or for a stack (runs,).

        A constraint is active if its multiplier is greater than a millionth of the bound, which rounding is not.
        """
        multipliers, kappas = self._of_all().unbind(1)[:2]
        active = (multipliers > 1e-6 * kappas).double().mean(0)
        return {"constraint/active": active, "constraint/multiplier": multipliers.mean(0)}

    def _of_all(self) -> Tensor:
        """Return the states of ``params``, (parameters, 5), or for a stack (parameters, 5, runs)."""
        runs = self.view.runs if self.is_attached else None
        none = torch.zeros(() if runs is None else (runs,), dtype=torch.float64, device=self.params[0].device)
        states = [self._states.get(i) for i in range(len(self.params))]
        return torch.stack([new_state(none) if state is None else state for state in states])

    def gather_runs(self, runs: Sequence[Self]) -> None:
        super().gather_runs(runs)
        self._states = {}
        for i, p in enumerate(self.params):
            if any(i in run._states for run in runs):
                none = new_state(torch.zeros((), dtype=torch.float64, device=p.device))
                self._states[i] = torch.stack([run._states.get(i, none).to(p.device) for run in runs], dim=1)

    def scatter_runs(self, runs: Sequence[Self]) -> None:
        super().scatter_runs(runs)
        for k, run in enumerate(runs):
            run._states = {} if run.is_off else {i: state[:, k].clone() for i, state in self._states.items()}

    def state_dict(self) -> dict[str, Any]:
        states = {i: state.clone() for i, state in self._states.items()}
        return super().state_dict() | ({"constraints": states} if states else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        states = state.get("constraints", {})
        self._states = {i: values.to(self.params[i].device, copy=True) for i, values in states.items()}


def new_state(square: Tensor) -> Tensor:
    """Return the state of a tensor that is first decayed in this step, without a bound: shape (5,), or (5, runs).

    Args:
        square: the mean of the tensor's squares, a float64 scalar tensor, or for a stack (runs,).
    """
    none = torch.full_like(square, math.inf)
    return torch.stack([torch.zeros_like(square), none, square.sqrt(), none, -none])


def as_factor(number: Tensor, weight: Tensor) -> Tensor:
    """Return a scalar tensor unmodified, and a number per run, (runs,), as a factor on a weight of the stack."""
    return number[:, None, None].to(weight.dtype) if number.dim() else number
