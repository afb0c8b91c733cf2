"""Penalties whose gradient is added to the gradient of the loss: ``L2``, ``L1`` and ``Lp``.

With Adam, the penalty gradient takes one of several routes (``routes.ROUTES``) through Adam's two moments.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from wdlab.regularizers.base import Params, Regularizer, Schedules
from wdlab.regularizers.checks import check_choice, check_number, is_adam_group
from wdlab.regularizers.penalties import Absolute, Bridge, HalfSquare, Penalty
from wdlab.regularizers.routes import OF_ADAM, ROUTES, THROUGH_MOMENTS, denominator, shrink_implicitly_
from wdlab.regularizers.runs import gathered
from wdlab.regularizers.views import ActiveGroup
from wdlab.tensors import add_, local_shards, scale_


class InLoss(Regularizer):
    """A penalty whose gradient ``r = s dR/dw`` is added to the gradient ``g`` of the loss in ``p.grad``.

    With Adam, ``route`` selects which of Adam's two moments the penalty gradient enters (P4, Bjorck et al. 2020, arXiv
    2012.13841):  [grade B for ``both`` and ``decoupled``, C for the rest: the exact recipe was not at hand]

    - ``both``: the first and the second moment are made of ``g + r``: the usual L2 regularization. Any optimizer.
    - ``first``: the first moment is made of ``g + r``, the second of ``g``.
    - ``second``: the first moment is made of ``g``, the second of ``g + r``.
    - ``separate``: both moments are made of ``g``. After Adam's step each weight is divided by ``1 + lr (r / w) /
      (sqrt(v) + eps)``, for L2 ``1 + lr s / (sqrt(v) + eps)``. This is an implicit step of the penalty, divided by the
      root of Adam's second moment. It follows the weight without the lag of a first moment.
    - ``separate_explicit``: ``r`` has a first moment of its own, with Adam's beta, which is divided by the root of
      Adam's second moment: the recipe as P4's abstract states it.
    - ``decoupled``: ``w -= lr * r`` before the step; both moments are made of ``g``. For L2 this is AdamW. Any
      optimizer.

    ``first`` and ``separate_explicit`` make the same steps, up to rounding: the first moment is linear in the gradient,
    so the moment of ``g + r`` is the sum of the moments of ``g`` and of ``r`` if these have one beta. This also holds
    while the strength changes over time. What sets both of them apart from ``both`` is the second moment alone.

    Where the loss has no gradient at all (pixels that are always black, dead units), ``first`` and
    ``separate_explicit`` divide the penalty gradient by Adam's ``eps`` alone, and a weight takes steps of up to ``lr *
    r / eps``. With L2 such a weight overshoots zero if ``lr s`` is well above ``eps``, and grows without bound above
    ``2 eps (1 + beta1) / (1 - beta1)``. Give Adam a larger ``eps`` then. ``separate`` takes it to zero at any strength.
    On every route the decay is multiplied by the learning rate.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
        penalty: the penalty ``R``.
        route: name of the route.

    Raises:
        ValueError: for an unknown route; at ``attach``, for a route other than ``both`` and ``decoupled`` with an
            optimizer other than Adam and AdamW.
    """

    def __init__(
        self,
        params: Params,
        strength: float,
        penalty: Penalty,
        route: str = "both",
        over_time: Schedules = None,
    ) -> None:
        self.penalty_function = penalty
        self.route = check_choice("route", route, ROUTES)
        self.minimizes_penalty = self.route not in ("second", "decoupled")  # a step is 0 where g + r is 0
        self._moments: dict[int, Tensor] = {}  # m(r), first moment of ``r``, by the parameter's index in ``params``
        super().__init__(params, strength, over_time)

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if self.route in OF_ADAM and not all(map(is_adam_group, optimizer.param_groups)):
            raise ValueError(f"route={self.route!r}: needs Adam or AdamW, got {type(optimizer).__name__}")

    def after_backward(self) -> None:
        if self.route not in ("separate", "decoupled"):
            parts = self.active_groups()
            for part in parts:
                gradient = self.penalty_gradient(part.params)
                if self.route in ("both", "second"):
                    self.add_to_gradients(part.params, gradient, ascent_sign(part) * part.strength)
                if self.route != "both":
                    self._update_moments(part, gradient)
            self._let_moments_fade(parts)

    def before_step(self) -> None:
        if self.route == "decoupled":
            for part in self.active_groups():
                self.decay_(part.params, part.lr * part.strength)

    def after_step(self) -> None:
        if self.route in THROUGH_MOMENTS:
            self._correct()
        elif self.route == "separate":
            self._shrink()

    def decay_(self, params: Sequence[Tensor], rate: float | Tensor) -> None:
        """Subtract ``rate * dR/dw`` from each parameter in place: the decay on the route ``decoupled``.

        Args:
            params: the parameters.
            rate: learning rate times strength; for a stack a number per run, (runs, 1, 1).
        """
        add_(local_shards(params), self.penalty_gradient(params), -rate)

    def penalty(self) -> Tensor:
        return sum((self.penalty_function.value(g["params"]) * g["strength"] for g in self.groups), super().penalty())

    def penalty_gradient(self, params: Sequence[Tensor]) -> list[Tensor]:
        return self.penalty_function.gradient(params)

    # -- routes through Adam -----------------------------------------------------------------------------------------
    #
    # Adam's first moment m is linear in the gradient, m(g + r) = m(g) + m(r). So the optimizer takes an ordinary step
    # with the gradient g or g + r, and the weights are corrected afterwards by m(r), which this class keeps. v is the
    # second moment.
    #
    #     first, separate_explicit: Adam's step uses g;      w -= lr m(r) / (sqrt(v(g)) + eps)
    #     second:                   Adam's step uses g + r;  w += lr m(r) / (sqrt(v(g + r)) + eps)

    def _update_moments(self, part: ActiveGroup, gradient: Sequence[Tensor]) -> None:
        """Update the first moment of the penalty gradient, ``m(r)``, for each parameter in ``part``.

        Args:
            part: parameters with their strength in this step.
            gradient: ``dR/dw`` for each of these parameters.
        """
        places = {id(t): i for i, t in enumerate(self.tensors)}
        beta = self.view.optimizer_group(self.params[places[id(part.params[0])]])["betas"][0]
        for p, r in zip(part.params, gradient, strict=True):
            moment = self._moments.setdefault(places[id(p)], torch.zeros_like(r))
            moment.lerp_(r * part.strength, 1 - beta)

    def _let_moments_fade(self, parts: Sequence[ActiveGroup]) -> None:
        """Update the first moment of the penalty gradient with a gradient of 0, where the strength is 0 in this step.

        Args:
            parts: all parameters whose strength is not 0, as ``active_groups`` returns them.
        """
        active = {id(t) for part in parts for t in part.params}
        for i, moment in self._moments.items():
            t = self.view.tensor(self.params[i])
            if t.grad is not None and id(t) not in active:
                moment.mul_(self.view.optimizer_group(self.params[i])["betas"][0])

    def _correct(self) -> None:
        """Subtract ``lr m(r) / (sqrt(v) + eps)`` from the weights after Adam's step; add it on the route ``second``.

        ``m(r)`` is the bias-corrected first moment of the penalty gradient, ``v`` Adam's bias-corrected second moment
        (with AMSGrad its maximum).
        """
        sign, view = 1 if self.route == "second" else -1, self.view
        for i, p in enumerate(self.params):
            moment, group, t = self._moments.get(i), view.optimizer_group(p), view.tensor(p)
            if moment is None or t.grad is None:
                continue
            steps = view.state(p)["step"].double()  # Adam's count holds for m(r), which is 0 where there was no penalty
            mean = moment / (1 - group["betas"][0] ** steps)
            local_shards([t])[0].add_(mean.div_(denominator(view, p)).mul_(view.lr_of(p)), alpha=sign)

    def _shrink(self) -> None:
        """Take the implicit step of the route ``separate`` after Adam's step."""
        params = {id(t): p for t, p in zip(self.tensors, self.params, strict=True)}
        for part in self.active_groups():
            gradients = self.penalty_gradient(part.params)
            for t, w, r in zip(part.params, local_shards(part.params), gradients, strict=True):
                shrink_implicitly_(w, r, part.lr * part.strength / denominator(self.view, params[id(t)]))

    def gather_runs(self, runs: Sequence[Self]) -> None:
        super().gather_runs(runs)
        self._moments = {}
        for i, (p, t) in enumerate(zip(self.params, self.tensors, strict=True)):
            if any(i in run._moments for run in runs):
                zero = torch.zeros_like(p)
                self._moments[i] = gathered([run._moments.get(i, zero) for run in runs], t)

    def scatter_runs(self, runs: Sequence[Self]) -> None:
        super().scatter_runs(runs)
        for row, run in enumerate(runs):
            if run.strength != 0:  # as for a run that is trained alone, which then has no moments
                run._moments = {i: m[row].reshape(self.params[i].shape) for i, m in self._moments.items()}

    def state_dict(self) -> dict[str, Any]:
        moments = {i: moment.clone() for i, moment in self._moments.items()}
        return super().state_dict() | ({"moments": moments} if moments else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        moments = state.get("moments", {})
        self._moments = {i: moment.to(self.params[i].device, copy=True) for i, moment in moments.items()}


class L2(InLoss):
    """L2 regularization, ``R(w) = |w|^2 / 2``: adds ``s * w`` to the gradient of the loss before the optimizer's step.

    [grade B]

    The optimizer multiplies the decay by its learning rate; an adaptive optimizer also divides the decay by the scale
    of the gradient. With torch's SGD and Adam this is their ``weight_decay``, to the last bit.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
        route: selects the moments of Adam that the penalty gradient enters (P4), see :class:`InLoss`.
    """

    stackable = True

    def __init__(
        self,
        params: Params,
        strength: float,
        route: str = "both",
        over_time: Schedules = None,
    ) -> None:
        super().__init__(params, strength, HalfSquare(), route, over_time)

    def decay_(self, params: Sequence[Tensor], rate: float | Tensor) -> None:
        shrink_(params, rate)


class L1(InLoss):
    """L1 regularization, ``R(w) = |w|_1``: adds ``s * sign(w)`` to the gradient of the loss, with ``sign(0) = 0``.

    [grade B]

    The optimizer multiplies the decay by its learning rate. Weights come close to zero and oscillate around zero. For
    exact zeros use the proximal step ``PNormProx`` with p=1, or ``PNormDecay``.

    Args:
        params, strength, route, over_time: as in :class:`L2`.
    """

    stackable = True

    def __init__(
        self,
        params: Params,
        strength: float,
        route: str = "both",
        over_time: Schedules = None,
    ) -> None:
        super().__init__(params, strength, Absolute(), route, over_time)


class Lp(InLoss):
    """Lp regularization, ``R(w) = sum (|w| + epsilon)^p - epsilon^p``, by the gradient: the comparator of P2.

    [grade B]

    The penalty's gradient is added to the gradient of the loss, so the optimizer multiplies the decay by its learning
    rate. For p < 1 the gradient of ``|w|^p`` diverges at 0. ``epsilon`` limits it to ``p epsilon^(p-1)``, which is
    0.8 * 40 at the defaults. At 0 the gradient is 0.

    Args:
        params, strength, route, over_time: as in :class:`L2`.
        p: the exponent, > 0.
        epsilon: offset of ``|w|``, > 0, in units of the weights.
    """

    stackable = True

    def __init__(
        self,
        params: Params,
        strength: float,
        p: float = 0.8,
        epsilon: float = 1e-8,
        route: str = "both",
        over_time: Schedules = None,
    ) -> None:
        penalty = Bridge(check_number("p", p, above=0.0), check_number("epsilon", epsilon, above=0.0))
        super().__init__(params, strength, penalty, route, over_time)


def ascent_sign(part: ActiveGroup) -> int:
    """Return -1 if the optimizer of these parameters maximizes, which reverses the sign of every gradient; else 1."""
    return -1 if part.maximize else 1


def shrink_(params: Sequence[Tensor], rate: float | Tensor) -> None:
    """Multiply each parameter in place by ``max(0, 1 - rate)``: decoupled decay that never changes a weight's sign.

    Args:
        params: the parameters.
        rate: learning rate times strength; for a stack a number per run, (runs, 1, 1).
    """
    scale_(local_shards(params), kept_share(rate))


def kept_share(rate: float | Tensor) -> float | Tensor:
    """Return ``max(0, 1 - rate)``, the share of a weight that is left after decoupled decay."""
    return (1 - rate).clamp(min=0) if isinstance(rate, Tensor) else max(0.0, 1 - rate)
