"""The routes by which the gradient of a penalty enters Adam's step (P4), and the arithmetic of the implicit one."""

import torch
from torch import Tensor

from wdlab.regularizers.views import ParametersView
from wdlab.tensors import local_shards

ROUTES = ("both", "first", "second", "separate", "separate_explicit", "decoupled")
THROUGH_MOMENTS = ("first", "second", "separate_explicit")  # with m(r), a first moment of the penalty gradient alone
OF_ADAM = (*THROUGH_MOMENTS, "separate")  # routes that no other optimizer has


def denominator(view: ParametersView, p: Tensor) -> Tensor:
    """Return ``sqrt(v) + eps`` of Adam's last step, ``v`` the bias-corrected second moment (with AMSGrad its maximum).

    Args:
        view: the parameters of an Adam or AdamW that has made a step.
        p: a parameter in ``view``.

    Returns:
        The shape of ``view.tensor(p)``; for a sharded parameter, of its local shard.
    """
    group, state = view.optimizer_group(p), view.state(p)
    (squares,) = local_shards([state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]])
    return (squares / (1 - group["betas"][1] ** state["step"].double())).sqrt_().add_(group["eps"])


def shrink_implicitly_(weight: Tensor, gradient: Tensor, rate: Tensor) -> None:
    """Divide a weight in place by ``1 + rate * gradient / weight``, where the gradient has the sign of the weight.

    For the gradient of L2, which is the weight itself, the result ``w`` solves ``w = u - rate * w``, where ``u`` is the
    given weight: the implicit Euler step. A weight of 0 stays 0. No weight changes its sign, whatever the rate.

    Args:
        weight: any tensor.
        gradient: the gradient of the penalty at ``weight``, in its shape.
        rate: the rate of each weight, >= 0, in its shape.
    """
    slopes = (gradient / weight).nan_to_num_(nan=0.0, posinf=torch.finfo(weight.dtype).max)  # 0 / 0 where it is 0
    weight.div_(slopes.mul_(rate).add_(1))
