"""PAdam: Adam with p-norm weight decay (P2)."""

import math
from typing import Any

import torch
from torch import Tensor

from wdlab.optimizers.base import ONE, DropIn, Params, fused_cpu_step, lists_of_step
from wdlab.regularizers import PNormDecay
from wdlab.regularizers.checks import as_number, check_number
from wdlab.regularizers.pnorm_factors import MAX_COEFFICIENT, shrink_factor
from wdlab.tensors import compiled as compile_once
from wdlab.tensors import is_sharded, local_shards


class PAdam(DropIn, torch.optim.Adam):
    """Adam with p-norm weight decay, pAdam (P2).

    [grade A: agrees with the released pAdam to 1e-9]

    Outmezguine and Levi 2024, arXiv 2404.10824: ``w = u / (1 + p lr weight_decay |w0|^(p-2))``, where ``w0`` is the
    weight before Adam's step and ``u`` the weight after it. The learning rate multiplies the decay. As in the released
    code, only tensors with at least 2 dimensions are decayed. p = 2 is decoupled decay with the factor ``1 / (1 + 2 lr
    weight_decay)``; p <= 1 makes exact zeros. For p < 2 a weight that is exactly 0 stays 0. With ``weight_decay=0`` the
    steps are Adam's, bit by bit.

    ``state_dict`` has Adam's entries, and a ``p`` for each group. A ``state_dict`` of torch's Adam or AdamW may be
    loaded too; the loaded ``weight_decay`` replaces the argument.

    Args:
        params: parameters, ``(name, parameter)`` pairs or groups, as in torch. A group may have its own
            ``weight_decay`` and ``p``.
        lr: learning rate.
        betas: coefficients of the moving averages of the gradient and of its square.
        eps: added to the root of the second moment.
        weight_decay: strength of the decay, >= 0.
        p: exponent of the norm, > 0, for groups without an own ``p``.
        foreach: as in ``torch.optim.Adam``.
        maximize: as in ``torch.optim.Adam``.
        fused: as in ``torch.optim.Adam``.
        compiled: True to do Adam's step and the decay in one loop made by ``torch.compile``, which needs a C++ compiler
            on the CPU. The result is the same up to rounding. Excludes ``foreach`` and ``fused``.

    Raises:
        ValueError: if a value is out of its range, a parameter is complex, or ``compiled`` is combined with
            ``foreach`` or ``fused``.
    """

    stacked_settings = ("lr", "p", "weight_decay")

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
        p = self._p = check_number("p", p, above=0.0)  # set before super().__init__, which adds and checks the groups
        fused = False if compiled else fused
        super().__init__(params, lr, betas, eps, weight_decay, foreach=foreach, maximize=maximize, fused=fused)
        self.defaults["p"] = p
        self.defaults["compiled"] = compiled
        self._step_supports_amp_scaling = False

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        group["p"] = check_number("p", group.get("p", self.defaults.get("p", getattr(self, "_p", None))), above=0.0)

    def _complete_loaded_group(self, group: dict[str, Any]) -> None:
        group.setdefault("p", self.defaults["p"])

    def _update(self) -> None:
        if self.defaults["compiled"]:
            for group in self.param_groups:
                self._compiled_update(group)
        else:
            self._step_with_method(torch.optim.Adam)

    def _base_step(self, base: type[torch.optim.Optimizer]) -> None:
        if not fused_cpu_step(self, [0.0] * len(self.param_groups)):
            super()._base_step(base)

    @classmethod
    def make_method(cls, groups: list[dict[str, Any]]) -> PNormDecay:
        """Create the p-norm decay that implements the optimizer's weight decay for ``groups``."""
        return PNormDecay(groups, 0.0)

    def decayed_group(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return the method's group for a group of the optimizer: tensors of 2 or more dimensions, strength, ``p``."""
        params = [p for p in group["params"] if p.dim() >= 2]
        return super().decayed_group(group) | {"params": params, "p": as_number(group["p"])}

    def _compiled_update(self, group: dict[str, Any]) -> None:
        """Update the parameters of one group by compiled steps, one for all parameters with the same step count.

        Raises:
            RuntimeError: for a group with amsgrad.
        """
        if group["amsgrad"]:
            raise RuntimeError("compiled=True: PAdam has no compiled step for a group with amsgrad")
        *lists, _, steps = lists_of_step(self, group)
        if not steps:
            return
        torch._foreach_add_(steps, ONE, alpha=1.0)
        if any(map(is_sharded, lists[0])):
            lists = [local_shards(tensors) for tensors in lists]
        counts = [step.item() for step in steps]
        if min(counts) == max(counts):
            self._compiled_step(group, counts[0], lists)
        else:  # parameters with different numbers of steps have different bias corrections
            for count in set(counts):
                indices = [i for i, other in enumerate(counts) if other == count]
                self._compiled_step(group, count, [[tensors[i] for i in indices] for tensors in lists])

    def _compiled_step(self, group: dict[str, Any], step: float, lists: list[list[Tensor]]) -> None:
        """Update parameters that have the same step count, by the compiled :func:`padam_step_`.

        Args:
            group: the optimizer's group of the parameters.
            step: Adam's step count, this step included.
            lists: parameters, gradients, first moments, second moments.
        """
        lr, p, (beta1, beta2) = float(group["lr"]), as_number(group["p"]), map(as_number, group["betas"])
        c = min(p * lr * as_number(group["weight_decay"]), MAX_COEFFICIENT)
        decays = c > 1 / MAX_COEFFICIENT
        bias1, bias2 = 1 - beta1**step, 1 - beta2**step
        numbers = 1 - beta1, beta2, 1 - beta2, lr / bias1, 1 / math.sqrt(bias2), group["eps"], c
        dtype = torch.float64 if lists[0][0].dtype == torch.float64 else torch.float32
        strides = [[t.stride() for t in tensors] for tensors in lists]
        equal_strides = strides[0] == strides[1] == strides[2] == strides[3]
        step_ = compile_once(padam_step_, ("gradients", "means", "squares") if equal_strides else ())
        # On the device of the weights: torch 2.11 cannot launch a compiled GPU kernel that takes numbers of the CPU.
        on_device = torch.tensor(numbers, dtype=dtype).to(lists[0][0].device, non_blocking=True)
        step_(*lists, on_device, p if decays else None, group["maximize"])


def padam_step_(
    params: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    numbers: Tensor,
    p: float | None,
    maximize: bool,
) -> None:
    """Take Adam's step and p-norm decay in place, by elementwise operations that a compiler fuses to a loop per tensor.

    Args:
        params: the weights.
        gradients: the gradient of each weight, in its shape.
        means: the first moment of each weight, in its shape.
        squares: the second moment of each weight, in its shape.
        numbers: shape (7,): ``1 - beta1``, ``beta2``, ``1 - beta2``, ``lr / (1 - beta1^t)``, ``1 / sqrt(1 - beta2^t)``,
            ``eps``, ``p lr weight_decay``. ``t`` is the step count, this step included.
        p: exponent of the norm, or None for no decay. Tensors with less than 2 dimensions are not decayed.
        maximize: True to change the sign of the gradients.
    """
    one_minus_beta1, beta2, one_minus_beta2, step_size, root_scale, eps, c = numbers.unbind()
    for w, g, mean, square in zip(params, gradients, means, squares, strict=True):
        g = -g if maximize else g
        mean.copy_(mean + (g - mean) * one_minus_beta1)
        square.copy_(square * beta2 + g * g * one_minus_beta2)
        u = w - step_size * mean / (square.sqrt() * root_scale + eps)
        w.copy_(u * shrink_factor(w, c, p) if p is not None and w.dim() >= 2 else u)
