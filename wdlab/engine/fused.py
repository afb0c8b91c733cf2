"""The choice of torch's fused step for the optimizer of a run: one kernel per step instead of a pass per operation.

``wdlab.build`` makes the choice, after the network is on its device. The steps are the same up to rounding.
"""

from typing import Any

import torch
from torch import nn

from wdlab.strides import same_strides
from wdlab.tensors import is_sharded

DEVICES = {"cpu", "cuda"}
DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def choose_step(model: nn.Module, optimizer: torch.optim.Optimizer, fused: bool) -> None:
    """Make an optimizer of the kind of Adam, AdamW or SGD take torch's fused step, where torch has one.

    A group that was given ``fused`` or ``foreach`` keeps its step. A state that is loaded later does not change the
    choice, although torch saves it in the groups.

    Args:
        model: the network, on its device.
        optimizer: the optimizer of the parameters of ``model``, which has taken no step.
        fused: True to choose the fused step, False to leave every group as it was given.
    """
    if fused and isinstance(optimizer, torch.optim.Adam | torch.optim.SGD) and not has_sparse_gradients(model):
        for group in optimizer.param_groups:
            if group["fused"] is None and has_fused_step(group):
                group["fused"] = True
    complete_momentum(optimizer)
    optimizer.register_load_state_dict_pre_hook(_with_own_choice)
    optimizer.register_load_state_dict_post_hook(complete_momentum)


def uses_fused_step(optimizer: torch.optim.Optimizer) -> bool:
    """Return True if all groups of an optimizer take torch's fused step."""
    return all(bool(group.get("fused")) for group in optimizer.param_groups)


def has_fused_step(group: dict[str, Any]) -> bool:
    """Return True if torch's fused step can replace the step of a group of Adam, AdamW or SGD.

    It cannot if the group was given ``foreach``, ``differentiable`` or a learning rate in a tensor, if a parameter is
    sharded, not on one of ``DEVICES``, not of one of ``DTYPES`` or has gaps in its memory, and for SGD's momentum with
    dampening, see :func:`complete_momentum`.
    """
    settings = group["foreach"] is None and not group["differentiable"] and not isinstance(group["lr"], torch.Tensor)
    dampened = group.get("momentum", 0) != 0 and group["dampening"] != 0
    return settings and not dampened and all(map(_is_fusible, group["params"]))


def _is_fusible(p: torch.Tensor) -> bool:
    plain = not is_sharded(p) and p.device.type in DEVICES and p.dtype in DTYPES
    return plain and same_strides(torch.empty_like(p), p)  # the strides are the same only if the memory has no gaps


def has_sparse_gradients(model: nn.Module) -> bool:
    """Return True if a module of the network, such as ``nn.Embedding(sparse=True)``, has sparse gradients."""
    return any(getattr(module, "sparse", False) for module in model.modules())


def complete_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give each parameter of a fused SGD group that has no momentum yet a momentum of zeros.

    torch's fused step raises a TypeError if only some of the parameters have one, so if a parameter gets its first
    gradient late. Without dampening, zeros lead to the same first step.
    """
    for group in optimizer.param_groups:
        if group.get("fused") and group.get("momentum", 0) != 0 and group["dampening"] == 0:
            for p in group["params"]:
                if optimizer.state[p].get("momentum_buffer") is None:
                    optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _with_own_choice(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state whose groups have the ``fused`` of the optimizer's own groups."""
    groups = zip(state["param_groups"], optimizer.param_groups, strict=False)  # torch refuses another number of groups
    return {**state, "param_groups": [{**saved, **_choice(own)} for saved, own in groups]}


def _choice(group: dict[str, Any]) -> dict[str, Any]:
    return {"fused": group["fused"]} if "fused" in group else {}
