"""Drop-in torch optimizers: ``AdamS`` and ``SGDS`` (P5), ``PAdam`` (P2).

They follow torch's own optimizers to the letter (parameter groups with values of their own, closures, schedulers,
``state_dict``, missing gradients) and are built from the methods in ``wdlab.regularizers``: the base optimizer takes
its step without weight decay, the method does the decay. The same methods attach to any other optimizer.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from wdlab.foreach import compiled as compile_once
from wdlab.foreach import is_sharded, local, number_beside
from wdlab.regularizers import DecoupledDecay, GradientScale, PNormDecay, Regularizer
from wdlab.regularizers.checks import as_number, check_number
from wdlab.regularizers.description import Row, describe
from wdlab.regularizers.gradient_scale import adam_scale, check_momentum
from wdlab.regularizers.hooks import go_before_the_step, go_behind_the_step
from wdlab.regularizers.in_loss import shrink_
from wdlab.regularizers.pnorm import LARGEST, remaining_factor
from wdlab.strides import laid_out_like, lie_alike, match_state

ONE = torch.tensor(1.0, device="cpu")  # added to many scalar tensors on the CPU, it takes a third of the time of 1

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class _DropIn(torch.optim.Optimizer):
    """What the three have in common: a group's ``weight_decay`` is the method's; the base optimizer sees another."""

    _strides: Sequence[tuple[int, ...]] = ()  # of the parameters of fused groups, with which their moments agree

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; complex parameters are refused by a ValueError."""
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        try:
            if any(p.is_complex() for p in added["params"]):
                raise ValueError(f"params: {type(self).__name__} does not support complex parameters")
            self._check_group(added)
        except ValueError:
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        group["weight_decay"] = check_number("weight_decay", group["weight_decay"], lowest=0.0)

    def _complete(self, group: dict[str, Any]) -> None:
        """Make a group that torch's own optimizer saved one of ours."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            self._complete(group)
        self._step_supports_amp_scaling = False  # a GradScaler has to unscale first: V is made of the gradients
        self._strides = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: for a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        others = self._check_gradients()
        try:
            for p, gradient in others:
                p.grad = laid_out_like(gradient, p)
            self._update()
        finally:
            for p, gradient in others:
                p.grad = gradient
        return loss

    def _check_gradients(self) -> list[tuple[Tensor, Tensor]]:
        """Refuse sparse gradients; return the parameters of fused groups whose gradients lie otherwise in memory.

        The moments of fused groups are laid out again where a parameter's strides have changed, or a state was loaded.
        """
        others, strides = [], []
        for group in self.param_groups:
            fused = group["fused"]
            for p in group["params"]:
                if fused:
                    strides.append(p.stride())
                if (gradient := p.grad) is None:
                    continue
                if gradient.is_sparse:
                    raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
                if fused and gradient.stride() != strides[-1] and not lie_alike(gradient, p):
                    others.append((p, gradient))
        if strides != self._strides:
            match_state(self)
            self._strides = strides
        return others

    def _update(self) -> None:
        """The step itself, decay included; gradients are in place and have been checked."""

    @contextlib.contextmanager
    def _base_weight_decay(self, values: Iterable[float]) -> Iterator[None]:
        """Show the base optimizer other weight decays than the user's, for the duration of its step."""
        users = [group["weight_decay"] for group in self.param_groups]
        try:
            for group, value in zip(self.param_groups, values, strict=True):
                group["weight_decay"] = value
            yield
        finally:
            for group, value in zip(self.param_groups, users, strict=True):
                group["weight_decay"] = value

    @torch.compiler.disable  # for those who compile the whole step: the method's own attributes change in it
    def _step_under(self, make: Callable[[list], Regularizer], base: type[torch.optim.Optimizer]) -> None:
        """The base optimizer's step without weight decay, with the moments of a method around it."""
        groups = [self._decayed(group) for group in self.param_groups]
        groups = [group for group in groups if group["params"]]
        if groups and not hasattr(self, "_method"):
            self._method = make(groups)
            self._method._optimizer = self
        methods = [self._method] if groups else []
        for method in methods:
            method.groups = groups  # as they are now
        with self._base_weight_decay([0.0] * len(self.param_groups)):
            go_before_the_step(methods)
            _plain_step(base)(self)
            go_behind_the_step(methods)

    def _decayed(self, group: dict[str, Any]) -> dict[str, Any]:
        return {"params": group["params"], "strength": as_number(group["weight_decay"])}

    def describe(self) -> str:
        """Return what is decayed and how strongly, as ``Regularizer.describe``; with names if it was given named
        parameters."""
        rows = []
        for group in self.param_groups:
            names = {id(p): name for p, name in zip(group["params"], group.get("param_names", ()), strict=False)}
            decayed = self._decayed(group)
            rows += [Row(p, decayed["strength"], names.get(id(p), "")) for p in decayed["params"]]
        return describe(type(self).__name__, rows, ["multiplied by the learning rate"], "weight_decay")


def _plain_step(base: type[torch.optim.Optimizer]) -> Callable:
    """The base class's ``step`` without torch's profiling and hooks, which run around ours already."""
    step = base.step
    while getattr(step, "hooked", False):
        step = step.__wrapped__
    return step


class AdamS(_DropIn, torch.optim.Adam):
    """Adam with scheduled weight decay, SWD (P5).  [grade A: agrees with the released AdamS to 1e-9]

    Xie et al. 2020/2023, arXiv 2011.11152: ``w *= 1 - lr * weight_decay / sqrt(V)``, then Adam's step, with V the mean
    of Adam's bias-corrected second moment (AMSGrad: of its maximum) over all parameters that have a gradient. The
    learning rate multiplies the decay. All parameters are decayed unless their group says ``weight_decay=0``. The
    factor is never negative, and 1 where V is 0. With ``weight_decay=0`` the steps are Adam's, bit by bit.

    ``state_dict`` has Adam's entries and, per parameter, ``mean_square`` (the mean of its second moment) and
    ``updates``; that of a torch Adam or AdamW may be loaded instead, which brings its own ``weight_decay``. A
    GradScaler unscales the gradients itself.

    Args:
        params: parameters, named parameters or groups, as in torch.
        lr: learning rate.
        betas: of the moments.
        eps: added to the root of the second moment.
        weight_decay: s, >= 0.
        amsgrad: use the maximum of the second moments so far.
        foreach, fused, maximize: as in ``torch.optim.Adam``.

    Raises:
        ValueError: for a value out of its range, a complex parameter.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 5e-4,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            fused=fused,
            decoupled_weight_decay=True,
        )
        self._step_supports_amp_scaling = False

    def _complete(self, group: dict[str, Any]) -> None:
        group["decoupled_weight_decay"] = True

    def _update(self) -> None:
        scale = adam_scale(self, self.state)
        if scale is None:
            return
        weight_decays = [as_number(group["weight_decay"]) for group in self.param_groups]
        strengths = [weight_decay * scale.inverse_root for weight_decay in weight_decays]
        if isinstance(scale.inverse_root, Tensor):  # on a device: nothing may wait for it
            for group, weight_decay, strength in zip(self.param_groups, weight_decays, strengths, strict=True):
                params = [p for p in group["params"] if p.grad is not None]
                if weight_decay != 0 and params:
                    shrink_(params, number_beside(params[0], group["lr"]) * strength)
            self._adam_step([0.0] * len(strengths))
        else:  # Adam's own decoupled decay, in the same pass over memory
            limits = [1 / float(group["lr"]) if group["lr"] else math.inf for group in self.param_groups]
            strengths = [min(s, limit) for s, limit in zip(strengths, limits, strict=True)]
            if all(group["fused"] and len({p.dtype for p in group["params"]}) == 1 for group in self.param_groups):
                self._fused_cpu_step(strengths)
            else:
                self._adam_step(strengths)
        for p, average, updates in scale.averages:
            state = self.state[p]
            state["mean_square"], state["updates"] = average, updates

    def _adam_step(self, weight_decays: list[float]) -> None:
        with self._base_weight_decay(weight_decays):
            _plain_step(torch.optim.Adam)(self)

    def _fused_cpu_step(self, weight_decays: list[float]) -> None:
        """The same for fused groups of one type on the CPU, without the time torch takes to tell devices apart."""
        for group, weight_decay in zip(self.param_groups, weight_decays, strict=True):
            lists: tuple[list[Tensor], ...] = [], [], [], [], [], []
            self._init_group(group, *lists)
            if steps := lists[-1]:
                torch._foreach_add_(steps, ONE, alpha=1.0)
                torch._fused_adamw_(
                    *lists,
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    weight_decay=weight_decay,
                    eps=group["eps"],
                    amsgrad=group["amsgrad"],
                    maximize=group["maximize"],
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch. ``mean_square`` keeps its precision where parameters are of a narrower type."""
        loaded: list[dict[str, Any]] = []  # what is left of the state after the user's hooks
        before = self.register_load_state_dict_pre_hook(lambda _, state: loaded.append(state))
        after = self.register_load_state_dict_post_hook(lambda _: self._take_mean_squares(loaded[0]), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _take_mean_squares(self, state_dict: dict[str, Any]) -> None:
        numbers = (number for group in state_dict["param_groups"] for number in group["params"])
        ours = (p for group in self.param_groups for p in group["params"])
        for number, p in zip(numbers, ours, strict=True):
            saved = state_dict["state"].get(number, {}).get("mean_square")
            if saved is not None:
                value = torch.as_tensor(saved, dtype=None if isinstance(saved, Tensor) else torch.float64)
                whole = p.device.type == "cpu" and not is_sharded(p)
                self.state[p]["mean_square"] = value.item() if whole else value.clone().to(p.device)


class SGDS(_DropIn, torch.optim.SGD):
    """SGD with scheduled weight decay, SWD (P5).  [grade A: agrees with the released SGDS to 1e-9]

    Xie et al. 2020/2023, arXiv 2011.11152: ``w *= 1 - lr * weight_decay (1 - dampening) / (1 - momentum)``, then SGD's
    step. The learning rate multiplies the decay. All parameters are decayed unless their group says
    ``weight_decay=0``. The factor is never negative. With ``weight_decay=0`` the steps are SGD's, bit by bit;
    ``state_dict`` is SGD's.

    Args:
        params: parameters, named parameters or groups, as in torch.
        lr: learning rate.
        momentum: in [0, 1).
        dampening: of the momentum.
        weight_decay: s, >= 0.
        nesterov: needs a momentum and no dampening.
        foreach, fused, maximize: as in ``torch.optim.SGD``.

    Raises:
        ValueError: for a value out of its range, a complex parameter.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            foreach=foreach,
            maximize=maximize,
            fused=fused,
        )
        self._step_supports_amp_scaling = False

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_momentum(group["momentum"], group["dampening"])

    def _update(self) -> None:
        self._step_under(lambda groups: DecoupledDecay(groups, 0.0, GradientScale()), torch.optim.SGD)


class PAdam(_DropIn, torch.optim.Adam):
    """Adam with p-norm weight decay, pAdam (P2).  [grade A: agrees with the released pAdam to 1e-9]

    Outmezguine and Levi 2024, arXiv 2404.10824: with ``w0`` the weight before Adam's step and ``u`` behind it,
    ``w = u / (1 + p lr weight_decay |w0|^(p-2))``. The learning rate multiplies the decay. As released, tensors with at
    least 2 dimensions are decayed, and no others. p = 2 is decoupled decay (with the factor ``1 / (1 + 2 lr
    weight_decay)``), p <= 1 makes exact zeros. With ``weight_decay=0`` the steps are Adam's, bit by bit;
    ``state_dict`` is Adam's with a ``p`` for each group; that of a torch Adam or AdamW may be loaded, which brings its
    own ``weight_decay``.

    Args:
        params: parameters, named parameters or groups (with a ``weight_decay`` and a ``p`` of their own), as in torch.
        lr: learning rate.
        betas: of the moments.
        eps: added to the root of the second moment.
        weight_decay: s, >= 0.
        p: > 0.
        foreach, fused, maximize: as in ``torch.optim.Adam``.
        compiled: Adam's step and the decay in one loop made by ``torch.compile`` (needs a C++ compiler on the CPU);
            equal to the other ways up to rounding. Not together with ``foreach`` or ``fused``.

    Raises:
        ValueError: for a value out of its range, a complex parameter.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-3,
        p: float = 0.8,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        fused: bool | None = None,
        compiled: bool = False,
    ) -> None:
        if compiled and (foreach or fused):
            raise ValueError("compiled=True: not together with foreach or fused")
        p = self._p = check_number("p", p, above=0.0)  # known before torch adds the groups
        super().__init__(params, lr, betas, eps, weight_decay, foreach=foreach, maximize=maximize, fused=fused)
        self.defaults["p"] = p
        self.defaults["compiled"] = compiled
        self._step_supports_amp_scaling = False

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        group["p"] = check_number("p", group.get("p", self.defaults.get("p", getattr(self, "_p", None))), above=0.0)

    def _complete(self, group: dict[str, Any]) -> None:
        group.setdefault("p", self.defaults["p"])

    def _update(self) -> None:
        if self.defaults["compiled"]:
            for group in self.param_groups:
                self._compiled_update(group)
        else:
            self._step_under(lambda groups: PNormDecay(groups, 0.0), torch.optim.Adam)

    def _decayed(self, group: dict[str, Any]) -> dict[str, Any]:
        params = [p for p in group["params"] if p.dim() >= 2]
        return super()._decayed(group) | {"params": params, "p": as_number(group["p"])}

    def _compiled_update(self, group: dict[str, Any]) -> None:
        if group["amsgrad"]:
            raise RuntimeError("compiled=True: PAdam has no compiled step for a group with amsgrad")
        params: list[Tensor] = []
        gradients: list[Tensor] = []
        means: list[Tensor] = []
        squares: list[Tensor] = []
        steps: list[Tensor] = []
        self._init_group(group, params, gradients, means, squares, [], steps)
        if not params:
            return
        torch._foreach_add_(steps, ONE, alpha=1.0)
        lists = [params, gradients, means, squares]
        if any(map(is_sharded, params)):
            lists = [local(tensors) for tensors in lists]
        counts = [step.item() for step in steps]
        if min(counts) == max(counts):
            self._compiled_step(group, counts[0], lists)
        else:  # a step of its own for each bias correction
            for count in set(counts):
                places = [i for i, other in enumerate(counts) if other == count]
                self._compiled_step(group, count, [[tensors[i] for i in places] for tensors in lists])

    def _compiled_step(self, group: dict[str, Any], step: float, lists: list[list[Tensor]]) -> None:
        lr, p, (beta1, beta2) = float(group["lr"]), as_number(group["p"]), map(as_number, group["betas"])
        c = min(p * lr * as_number(group["weight_decay"]), LARGEST)
        decays = c > 1 / LARGEST
        bias1, bias2 = 1 - beta1**step, 1 - beta2**step
        numbers = 1 - beta1, beta2, 1 - beta2, lr / bias1, 1 / math.sqrt(bias2), group["eps"], c
        dtype = torch.float64 if lists[0][0].dtype == torch.float64 else torch.float32
        strides = [[t.stride() for t in tensors] for tensors in lists]
        alike = strides[0] == strides[1] == strides[2] == strides[3]
        step_ = compile_once(padam_step_, ("gradients", "means", "squares") if alike else ())
        step_(*lists, torch.tensor(numbers, dtype=dtype), p if decays else None, group["maximize"])


def padam_step_(
    params: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    numbers: Tensor,
    p: float | None,
    maximize: bool,
) -> None:
    """Adam's step and p-norm decay in place, elementwise, for a compiler to make one loop per tensor of.

    Args:
        params, gradients, means, squares: weights, gradients, first and second moments.
        numbers: ``1 - beta1, beta2, 1 - beta2, lr / bias correction, 1 / root of the other, eps, p lr s``, shape (7,).
        p: None for no decay.
        maximize: turn the sign of the gradients.
    """
    one_minus_beta1, beta2, one_minus_beta2, step_size, root_scale, eps, c = numbers.unbind()
    for w, g, mean, square in zip(params, gradients, means, squares, strict=True):
        g = -g if maximize else g
        mean.copy_(mean + (g - mean) * one_minus_beta1)
        square.copy_(square * beta2 + g * g * one_minus_beta2)
        u = w - step_size * mean / (square.sqrt() * root_scale + eps)
        w.copy_(u * remaining_factor(w, c, p) if p is not None and w.dim() >= 2 else u)
