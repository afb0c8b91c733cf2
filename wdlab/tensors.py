"""Arithmetic over lists of tensors, sharded ones (DTensor) too. Used by the regularizers and optimizers."""

import functools
import types
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def local_shards(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors without autograd; of a sharded one this process's shard. What is elementwise may act on these."""
    return [t.detach() if type(t) in (Tensor, nn.Parameter) else _shard(t) for t in tensors]


def _shard(tensor: Tensor) -> Tensor:
    return tensor.detach().to_local() if is_sharded(tensor) else tensor.detach()


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor, of which each process may hold a part."""
    return type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "placements")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type to add things up in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def square_sums(tensors: Sequence[Tensor], like: Sequence[Tensor] | None = None) -> Tensor:
    """``sum(t^2)`` of each tensor, all shards together; shape (len(tensors),), at least float32.

    ``like`` has the sharding, if ``tensors`` are the local shards already.
    """
    shards = local_shards(tensors)
    if any(t.dtype.itemsize < 4 for t in shards):
        norms = [torch.linalg.vector_norm(t, dtype=accumulation_dtype(t.dtype)) for t in shards]
    else:
        norms = torch._foreach_norm(shards)
    return over_shards(tensors if like is None else like, torch.stack(norms).square())


def dots(left: Sequence[Tensor], right: Sequence[Tensor], like: Sequence[Tensor] | None = None) -> Tensor:
    """``sum(a * b)`` of each pair, all shards together; shape (len(left),), float64. ``like`` as above."""
    products = [(a.double() * b).sum() for a, b in zip(local_shards(left), local_shards(right), strict=True)]
    return over_shards(left if like is None else like, torch.stack(products))


def scalar_for(tensor: Tensor, number: float | Tensor) -> float | Tensor:
    """A learning rate as it can be computed with beside ``tensor``: a number, or a 0-dim tensor on its device.

    torch takes learning rates that are tensors on the CPU for parameters on any device. Reading one waits for nothing.
    """
    if not isinstance(number, Tensor):
        return number
    return number.item() if number.is_cpu and not tensor.is_cpu else number.squeeze()


def over_shards(tensors: Sequence[Tensor], sums: Tensor) -> Tensor:
    """Sums over this process's shards, shape (len(tensors),), added up over all processes where a tensor is sharded."""
    if not any(is_sharded(t) for t in tensors):
        return sums
    from torch.distributed.tensor import DTensor, Partial, Replicate

    alike: dict[tuple, list[int]] = {}
    for i, tensor in enumerate(tensors):
        if is_sharded(tensor):
            alike.setdefault((tensor.device_mesh, tensor.placements), []).append(i)
    sums = sums.clone()
    for (mesh, placements), where in alike.items():
        partial = [p if isinstance(p, Replicate) else Partial() for p in placements]
        sums[where] = DTensor.from_local(sums[where], mesh, partial).full_tensor()
    return sums


# In these five a number may be a scalar tensor, or, for tensors that hold a stack of runs in their first dimension, a
# number for each run: a tensor (runs, 1, ...) of as many dimensions as they have.


def add_number(tensors: Sequence[Tensor], number: float | Tensor) -> list[Tensor]:
    """``t + number`` of each tensor."""
    if is_per_run(number):
        return [t + number for t in tensors]
    return torch._foreach_add(tensors, number, **_as_tensor(number))


def add_number_(tensors: Sequence[Tensor], number: float | Tensor) -> None:
    """In place ``t += number`` of each tensor."""
    if is_per_run(number):
        for t in tensors:
            t.add_(number)
    else:
        torch._foreach_add_(tensors, number, **_as_tensor(number))


def scaled(tensors: Sequence[Tensor], number: float | Tensor) -> list[Tensor]:
    """``t * number`` of each tensor."""
    return [t * number for t in tensors] if is_per_run(number) else torch._foreach_mul(tensors, number)


def scale_(tensors: Sequence[Tensor], number: float | Tensor) -> None:
    """In place ``t *= number`` of each tensor."""
    if is_per_run(number):
        for t in tensors:
            t.mul_(number)
    else:
        torch._foreach_mul_(tensors, number)


def add_(tensors: Sequence[Tensor], addends: Sequence[Tensor], factor: float | Tensor) -> None:
    """In place: ``t += factor * addend`` for each pair."""
    if is_per_run(factor):
        for t, addend in zip(tensors, addends, strict=True):
            t.addcmul_(addend, factor)
    elif isinstance(factor, Tensor):
        torch._foreach_add_(tensors, torch._foreach_mul(addends, factor))
    else:
        torch._foreach_add_(tensors, addends, alpha=factor)


def is_per_run(number: float | Tensor) -> bool:
    """Whether it is a number for each run of a stack, which broadcasts over rows."""
    return isinstance(number, Tensor) and number.dim() > 0


def _as_tensor(number: float | Tensor) -> dict[str, float]:
    """Given an alpha, torch takes a scalar tensor as it is; else it would read its value, and wait for the device."""
    return {"alpha": 1.0} if isinstance(number, Tensor) else {}


@functools.cache
def compiled(function: Callable, unguarded: tuple[str, ...] = ()) -> Callable:
    """``torch.compile`` of a function, once for all its users.

    It compiles again for every new set of shapes; after 8 of them in one process torch says so and goes on uncompiled.

    Args:
        function: of lists of tensors, numbers and flags.
        unguarded: arguments, lists of tensors, that the caller has found to have shapes, types and strides of another
            one. That they still have those of the compilation is not looked up in every call; it would take a tenth
            of a small network's step.
    """
    options: dict = {  # on the CPU: fused multiply-adds, and no loop over several tensors at once
        "cpp.enable_floating_point_contract_flag": "fast",
        "cpp.max_horizontal_fusion_size": 1,
    }
    if unguarded:
        names = tuple(f"L['{name}']" for name in unguarded)
        options["guard_filter_fn"] = lambda guards: [not guard.name.startswith(names) for guard in guards]
        function = types.FunctionType(function.__code__.replace(), function.__globals__)  # compilations of its own
    return torch.compile(function, dynamic=False, options=options)
