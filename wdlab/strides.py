"""The order in memory of parameters, gradients and moments. Torch's fused CPU steps take it for one and the same.

They go through memory from end to end and compare no strides, so that a contiguous moment of a weight that lies
channels last would be read in the wrong order. Used by the drop-in optimizers and, where a checkpoint is loaded, by the
training loop.
"""

import torch
from torch import Tensor


def match_state(optimizer: torch.optim.Optimizer) -> None:
    """Lay the state of fused groups out in memory as the parameters are; the numbers stay the same."""
    for group in optimizer.param_groups:
        for p in group["params"] if group.get("fused") else ():
            state = optimizer.state.get(p) or {}
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == p.shape and not lie_alike(value, p):
                    state[name] = laid_out_like(value, p)


def lie_alike(tensor: Tensor, other: Tensor) -> bool:
    """Return True if two tensors of one shape have equal strides, but for dimensions of size 1, which do not count."""
    strides = zip(tensor.shape, tensor.stride(), other.stride(), strict=True)
    return all(size == 1 or one == two for size, one, two in strides)


def laid_out_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a copy of ``tensor`` with the strides of ``other``, which is of the same shape."""
    return torch.empty_like(other, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
