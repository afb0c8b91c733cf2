"""AdamS: Adam with scheduled weight decay (P5)."""

import math
from typing import Any

import torch
from torch import Tensor

from wdlab.optimizers.base import DropIn, Params, fused_cpu_step, unhooked_step
from wdlab.regularizers import Regularizer, ScheduledDecay
from wdlab.regularizers.checks import as_number
from wdlab.regularizers.gradient_scale import adam_scale
from wdlab.regularizers.in_loss import shrink_
from wdlab.tensors import is_sharded, scalar_for


class AdamS(DropIn, torch.optim.Adam):
    """Adam with scheduled weight decay, SWD (P5).

    [grade A: agrees with the released AdamS to 1e-9]

    Xie et al. 2020/2023, arXiv 2011.11152: ``w *= 1 - lr * weight_decay / sqrt(V)``, then Adam's step. V is the mean
    of Adam's bias-corrected second moment, including the current gradient, over all elements of all parameters that
    have a gradient. With AMSGrad, V is the mean of the maximum of the second moments. The learning rate multiplies the
    decay. All parameters are decayed, except the parameters of groups with ``weight_decay=0``. A negative factor is
    replaced by 0. If V is 0, nothing is decayed. With ``weight_decay=0`` the steps are Adam's, bit by bit.

    ``state_dict`` has Adam's entries and, per parameter, ``mean_square`` (the mean of its second moment) and
    ``updates`` (the number of updates of ``mean_square``). A ``state_dict`` of torch's Adam or AdamW may be loaded too;
    the loaded ``weight_decay`` replaces the argument. A GradScaler unscales the gradients before the step.

    Args:
        params: parameters, ``(name, parameter)`` pairs or groups, as in torch.
        lr: learning rate.
        betas: coefficients of the moving averages of the gradient and of its square.
        eps: added to the root of the second moment.
        weight_decay: strength of the decay, >= 0.
        amsgrad: True to divide by the root of the maximum of the second moments so far.
        foreach: as in ``torch.optim.Adam``.
        maximize: as in ``torch.optim.Adam``.
        fused: as in ``torch.optim.Adam``.

    Raises:
        ValueError: if a value is out of its range, or a parameter is complex.
    """

    stacked_settings = ("lr", "weight_decay")

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

    def _complete_loaded_group(self, group: dict[str, Any]) -> None:
        group["decoupled_weight_decay"] = True

    @classmethod
    def make_method(cls, groups: list[dict[str, Any]]) -> ScheduledDecay:
        """Create the scheduled decay that decays a stack of runs; a single run is decayed in the optimizer's step."""
        return ScheduledDecay(groups, 0.0)

    def load_state_into(self, method: Regularizer) -> None:
        """Give the method's gradient scale the ``mean_square`` and ``updates`` of every parameter."""
        states = [self.state.get(p, {}) for group in self.param_groups for p in group["params"]]
        memory = [{key: state[key] for key in ("mean_square", "updates") if key in state} for state in states]
        method.over_time[0].load_state_dict({"memory": memory, "inverse_root": 1.0})

    def save_state_of(self, method: Regularizer) -> None:
        """Set the ``mean_square`` and ``updates`` of every parameter to those of the method's gradient scale."""
        params = [p for group in self.param_groups for p in group["params"]]
        for p, average in zip(params, method.over_time[0].state_dict()["memory"], strict=True):
            self.state[p].update(average)

    def _update(self) -> None:
        scale = adam_scale(self, self.state)
        if scale is None:
            return
        weight_decays = [as_number(group["weight_decay"]) for group in self.param_groups]
        strengths = [weight_decay * scale.inverse_root for weight_decay in weight_decays]
        if isinstance(scale.inverse_root, Tensor):  # a tensor on a device, and reading it would wait for the device
            for group, weight_decay, strength in zip(self.param_groups, weight_decays, strengths, strict=True):
                params = [p for p in group["params"] if p.grad is not None]
                if weight_decay != 0 and params:
                    shrink_(params, scalar_for(params[0], group["lr"]) * strength)
            self._adam_step([0.0] * len(strengths))
        else:  # by Adam's own decoupled decay, which is part of Adam's pass over memory
            limits = [1 / float(group["lr"]) if group["lr"] else math.inf for group in self.param_groups]
            strengths = [min(s, limit) for s, limit in zip(strengths, limits, strict=True)]
            if not fused_cpu_step(self, strengths):
                self._adam_step(strengths)
        for p, average, updates in scale.averages:
            state = self.state[p]
            state["mean_square"], state["updates"] = average, updates

    def _adam_step(self, weight_decays: list[float]) -> None:
        """Take Adam's step with decoupled decay; ``weight_decays`` has the strength of each group."""
        with self._base_weight_decay(weight_decays):
            unhooked_step(torch.optim.Adam)(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as in torch, but keep the dtype of ``mean_square``.

        torch would cast ``mean_square`` to the dtype of its parameter, which may be less precise.
        """
        loaded: list[dict[str, Any]] = []  # the state as the user's own pre-hooks return it
        before = self.register_load_state_dict_pre_hook(lambda _, state: loaded.append(state))
        after = self.register_load_state_dict_post_hook(lambda _: self._restore_mean_squares(loaded[0]), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _restore_mean_squares(self, state_dict: dict[str, Any]) -> None:
        """Set the ``mean_square`` of every parameter to its value in a ``state_dict``.

        It becomes a number for an unsharded parameter on the CPU, else a tensor on the parameter's device.
        """
        keys = (key for group in state_dict["param_groups"] for key in group["params"])
        params = (p for group in self.param_groups for p in group["params"])
        for key, p in zip(keys, params, strict=True):
            saved = state_dict["state"].get(key, {}).get("mean_square")
            if saved is not None:
                value = torch.as_tensor(saved, dtype=None if isinstance(saved, Tensor) else torch.float64)
                is_number = p.device.type == "cpu" and not is_sharded(p)
                self.state[p]["mean_square"] = value.item() if is_number else value.clone().to(p.device)
