"""Functions that give gradients and optimizer states the strides of their parameters.

torch's fused CPU steps assume equal strides: they go through each tensor's memory from end to end, and compare no
strides. For example, a contiguous moment of a channels-last weight would be read in the wrong order. Used by the
drop-in optimizers, and by the training loop after it has loaded a checkpoint.
"""

import torch
from torch import Tensor


def match_state_strides(optimizer: torch.optim.Optimizer) -> None:
    """Give every state tensor of a fused group the strides of its parameter. The values do not change.

    Only tensors in the shape of their parameter are replaced, such as Adam's moments.
    """
    for group in optimizer.param_groups:
        for p in group["params"] if group.get("fused") else ():
            state = optimizer.state.get(p) or {}
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == p.shape and not same_strides(value, p):
                    state[name] = with_strides_of(value, p)


def same_strides(tensor: Tensor, other: Tensor) -> bool:
    """Return True if two tensors of the same shape have equal strides, apart from dimensions of size 1."""
    strides = zip(tensor.shape, tensor.stride(), other.stride(), strict=True)
    return all(size == 1 or stride == other_stride for size, stride, other_stride in strides)


def with_strides_of(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a copy of ``tensor`` that has the strides and the device of ``other``, a tensor of the same shape."""
    return torch.empty_like(other, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
