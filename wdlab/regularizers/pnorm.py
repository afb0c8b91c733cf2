"""p-norm weight decay (P2): decoupled decay for the penalty ``sum |w|^p`` with any p > 0, and proximal steps.

Outmezguine and Levi 2024, arXiv 2404.10824.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wdlab.regularizers.base import Params, Schedules
from wdlab.regularizers.cautious import CanBeCautious
from wdlab.regularizers.checks import as_number, check_flag, check_number
from wdlab.regularizers.description import TensorRow
from wdlab.regularizers.penalties import Bridge, HalfSquare
from wdlab.regularizers.pnorm_factors import compiled_shrink_factors, shrink_factors
from wdlab.regularizers.views import ActiveGroup, effective_strength
from wdlab.tensors import accumulation_dtype, add_number, add_number_, is_per_run, local_shards, scale_


class _Bridged(CanBeCautious):
    """The base class of the methods for ``R(w) = sum |w|^p``, whose groups may have different ``p``.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
        p: the exponent, for the groups without an own ``p``.
        cautious: as in :class:`wdlab.regularizers.DecoupledDecay`.
    """

    def __init__(self, params: Params, strength: float, p: float, over_time: Schedules, cautious: bool) -> None:
        self._default_p = self.check_p(p)
        super().__init__(params, strength, over_time, cautious)

    def check_p(self, p: float) -> float:
        """Return ``p`` as a Python number; raise a ValueError if the method does not support this ``p``."""
        return check_number("p", p, above=0.0)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add a group of parameters to decay, as ``Regularizer.add_param_group``. The group may have its own ``p``."""
        super().add_param_group({**group, "p": self.check_p(group.get("p", self._default_p))})

    def penalty(self) -> Tensor:
        return sum((Bridge(g["p"]).value(g["params"]) * g["strength"] for g in self.groups), super().penalty())

    def penalty_gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        tensor = self._bound.tensor if self.is_attached else lambda w: w
        powers = {id(tensor(w)): group["p"] for group in self.groups for w in group["params"]}
        return [Bridge(powers[id(w)]).gradient([w])[0] for w in params]


class PNormDecay(_Bridged):
    """p-norm weight decay, pWD: decoupled decay for ``R(w) = sum |w|^p`` with any p > 0.

    [grade A: released pAdam, step by step]

    ``w = u / (1 + p lr s |w0|^(p-2))``, where ``w0`` is the weight before the optimizer's step and ``u`` the weight
    after it. For p < 2 a weight that is zero stays exactly zero. For p <= 1 small weights become zero in a few steps;
    the gradient of the penalty, which diverges at 0 for p < 1, is not needed. p = 2 is decoupled decay with the factor
    ``1 / (1 + 2 lr s)``. The learning rate multiplies the decay. The released pAdam decays only tensors with at least 2
    dimensions; this class decays all parameters that it is given.

    With a ``ridge`` r this is the elastic p-norm [grade B], with the penalty ``r |w|^2 / 2`` in the same factor:
    ``w = u X / (X (1 + lr r) + p lr s)`` with ``X = |w0|^(2-p)``. If the strength is 0, this is ``w = u / (1 + lr r)``.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`. ``over_time`` changes ``ridge`` too.
        p: the exponent, > 0. A group may have its own, ``{"params": ..., "p": 1.0}``.
        late: True for the factor ``1 / (1 + p lr s |u|^(p-2))``, the late variant in the released code.
        compiled: True to do the arithmetic by ``torch.compile``, in one pass over memory. Needs a C++ compiler on the
            CPU.
        cautious: True to apply the factor only to weights that the optimizer's update does not move away from zero,
            as in :class:`wdlab.regularizers.DecoupledDecay`.
        ridge: the strength of the squared L2 norm, >= 0, for all groups. The method is off if both strengths are 0.
            ``penalty_gradient``, which gates and metrics use, is that of ``sum |w|^p`` alone.

    Raises:
        ValueError: for a p that is not a finite number > 0, a negative or non-finite strength or ridge, or a flag that
            is not a bool.
    """

    stackable = True

    def __init__(
        self,
        params: Params,
        strength: float,
        p: float = 0.8,
        late: bool = False,
        compiled: bool = False,
        over_time: Schedules = None,
        cautious: bool = False,
        ridge: float = 0.0,
    ) -> None:
        self.late, self.compiled = check_flag("late", late), check_flag("compiled", compiled)
        self.ridge = check_number("ridge", ridge, lowest=0.0)
        # (parameters, their factors) per active group, from before_step to after_step
        self._factors: list[tuple[list[Tensor], list[Tensor] | Tensor | float]] = []
        self._scratch: dict[int, Tensor] = {}  # reused memory for the factors on the CPU, by the parameter's id
        super().__init__(params, strength, p, over_time, cautious)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_factors": [], "_scratch": {}}

    @property
    def is_off(self) -> bool:
        """True if the method does nothing: all its strengths are 0, and so is ``ridge``."""
        return super().is_off and self.ridge == 0

    def describe(self) -> str:
        """Return the text of ``Regularizer.describe``, with the ridge in its first line."""
        first, *rows = super().describe().splitlines()
        if self.ridge:
            alone = super().is_off
            first = first.replace(", strength ", ", ridge ", 1) if alone else f"{first}, ridge {self.ridge:g}"
        return "\n".join([first, *rows])

    def _rows(self) -> list[TensorRow]:
        return [row if row.strength else row._replace(strength=self.ridge) for row in super()._rows()]

    def active_groups(self) -> list[ActiveGroup]:
        """Return the parameters to decay in this step, as ``Regularizer.active_groups``.

        With a ridge, parameters of strength 0 are among them, and each ``group`` has a ``ridge`` with the factors of
        ``over_time``.
        """
        if self.ridge == 0:
            return super().active_groups()
        active = []
        for params, group, optimizer_group, given, lr, factors in self.sections():
            factor = effective_strength(1.0, factors, self.updates, optimizer_group, self.clock)
            if isinstance(factor, Tensor) or factor != 0:
                own = group | {"ridge": self.ridge * factor}
                active.append(ActiveGroup(params, given * factor, lr, optimizer_group.get("maximize", False), own))
        return active

    def penalty(self) -> Tensor:
        """Return ``s sum |w|^p + ridge |w|^2 / 2`` as a scalar tensor."""
        return super().penalty() + (self.ridge * HalfSquare().value(self.params) if self.ridge else 0)

    def before_step(self) -> None:
        super().before_step()
        if not self.late:
            self._factors = [(part.params, self._shrink_factors(part)) for part in self.active_groups()]

    def after_step(self) -> None:
        if self.late:
            self._factors = [(part.params, self._shrink_factors(part)) for part in self.active_groups()]
        for params, factors in self._factors:
            weights = local_shards(params)
            if self.cautious:
                pairs = zip(weights, factors if isinstance(factors, list) else [factors] * len(weights), strict=True)
                torch._foreach_copy_(weights, self.where_allowed(params, [w * factor for w, factor in pairs]))
            elif isinstance(factors, list):
                torch._foreach_mul_(weights, factors)
            else:
                scale_(weights, factors)
        self._factors = []

    def _shrink_factors(self, part: ActiveGroup) -> list[Tensor] | Tensor | float:
        """Return the factors ``1 / (1 + p lr s |w|^(p-2))`` for the current weights, as :func:`shrink_factors` does."""
        p, c, ridge = part.group["p"], part.group["p"] * part.lr * part.strength, part.lr * part.group.get("ridge", 0.0)
        weights = local_shards(part.params)
        if self.compiled and not is_per_run(c) and not is_per_run(ridge):
            return compiled_shrink_factors(weights, c, p, ridge)
        return shrink_factors(weights, c, p, self._memory_for(part.params, weights), ridge)

    def _memory_for(self, params: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor] | None:
        """Return a tensor for the factors of each weight; None if a weight is not on the CPU.

        Args:
            params: the parameters.
            weights: the local shards of ``params``.
        """
        if not all(w.is_cpu for w in weights):
            return None
        for p, w in zip(params, weights, strict=True):
            place = self._scratch.get(id(p))
            if place is None or place.shape != w.shape or place.dtype != accumulation_dtype(w.dtype):
                self._scratch[id(p)] = torch.empty_like(w, dtype=accumulation_dtype(w.dtype))
        return [self._scratch[id(p)] for p in params]


class PNormProx(_Bridged):
    """The exact proximal step on ``R(w) = sum |w|^p`` for p = 1 and p = 3/2: the comparators in P2's released code.

    [grade B]

    The optimizer's step results in the weight ``u``; then ``w = argmin_z (z - u)^2 / 2 + t |z|^p`` with ``t = lr * s``.
    For p = 1 this is the soft threshold ``sign(u) max(0, |u| - t)``, for p = 3/2 it is
    ``sign(u) (2 |u| / (1.5 t + sqrt(2.25 t^2 + 4 |u|)))^2``. The learning rate multiplies the decay.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
        p: the exponent, 1 or 1.5. A group may have its own.
        cautious: True to take the step only for weights that the optimizer's update does not move away from zero, as in
            :class:`wdlab.regularizers.DecoupledDecay`.

    Raises:
        ValueError: for another p, or a negative or non-finite strength.
    """

    stackable = minimizes_penalty = True

    def __init__(
        self,
        params: Params,
        strength: float,
        p: float = 1.0,
        over_time: Schedules = None,
        cautious: bool = False,
    ) -> None:
        super().__init__(params, strength, p, over_time, cautious)

    def check_p(self, p: float) -> float:
        number = as_number(p)
        if number not in (1, 1.5):
            raise ValueError(f"p={p}: must be 1 or 1.5 for the exact prox; PNormDecay takes any p > 0")
        return number

    def after_step(self) -> None:
        for part in self.active_groups():
            threshold, weights = part.lr * part.strength, local_shards(part.params)
            if isinstance(threshold, Tensor) or threshold > 0:
                proxes = (soft_threshold if part.group["p"] == 1 else prox_p_three_halves)(weights, threshold)
                if isinstance(threshold, Tensor):
                    proxes = [torch.where(threshold > 0, new, w) for new, w in zip(proxes, weights, strict=True)]
                torch._foreach_copy_(weights, self.where_allowed(part.params, proxes))


def soft_threshold(weights: Sequence[Tensor], threshold: float | Tensor) -> list[Tensor]:
    """Return ``sign(w) max(0, |w| - t)`` for each tensor: the proximal operator of ``t |w|`` with ``t = threshold``."""
    sizes = torch._foreach_abs(weights)
    add_number_(sizes, -threshold)
    torch._foreach_clamp_min_(sizes, 0)
    return torch._foreach_mul(sizes, torch._foreach_sign(weights))


def prox_p_three_halves(weights: Sequence[Tensor], threshold: float | Tensor) -> list[Tensor]:
    """Return the result of the proximal operator of ``t |w|^(3/2)`` for each tensor, with ``t = threshold``.

    It is ``sign(w) r^2`` with ``r = |w| / (h + sqrt(h^2 + |w|))`` and ``h = 3 t / 4``.
    """
    half = 0.75 * threshold
    half = half.clamp(max=1e18) if isinstance(half, Tensor) else min(half, 1e18)  # so that its square is finite
    sizes = torch._foreach_abs(weights)
    denominators = add_number(sizes, half * half)
    torch._foreach_sqrt_(denominators)
    add_number_(denominators, half)
    torch._foreach_clamp_min_(denominators, [torch.finfo(w.dtype).tiny for w in weights])  # avoids 0 / 0 at w = t = 0
    roots = torch._foreach_div(sizes, denominators)
    torch._foreach_mul_(roots, roots)
    torch._foreach_minimum_(roots, sizes)  # rounding could make r^2 larger than |w|
    return torch._foreach_mul(roots, torch._foreach_sign(weights))
