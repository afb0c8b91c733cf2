"""The strides of parameters, gradients and moments, which torch's fused CPU steps assume to be equal.

A fused step passes through each tensor's memory from end to end and compares no strides. A contiguous moment of a
channels-last weight would be read in the wrong order. Used by the drop-in optimizers, and by the training loop after it
has loaded a checkpoint.
"""

import torch
from torch import Tensor


def match_state(optimizer: torch.optim.Optimizer) -> None:
    """Give the state of fused groups the strides of its parameters. Values do not change."""
    for group in optimizer.param_groups:
        for p in group["params"] if group.get("fused") else ():
            state = optimizer.state.get(p) or {}
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == p.shape and not same_strides(value, p):
                    state[name] = with_strides_of(value, p)


def same_strides(tensor: Tensor, other: Tensor) -> bool:
    """Return True if two tensors of one shape have equal strides in all dimensions of a size other than 1."""
    strides = zip(tensor.shape, tensor.stride(), other.stride(), strict=True)
    return all(size == 1 or one == two for size, one, two in strides)


def with_strides_of(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a copy of ``tensor`` with the strides of ``other``, which must have the same shape."""
    return torch.empty_like(other, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
