"""Arithmetic over lists of tensors, including sharded ones (DTensor). Used by the regularizers and optimizers."""

import functools
import types
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def local_shards(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors detached, a sharded one as this process's shard. Elementwise operations can act on these."""
    return [t.detach() if type(t) in (Tensor, nn.Parameter) else _shard(t) for t in tensors]


def _shard(tensor: Tensor) -> Tensor:
    return tensor.detach().to_local() if is_sharded(tensor) else tensor.detach()


def is_sharded(tensor: Tensor) -> bool:
    """Return True if the tensor is a DTensor, of which each process may hold a part."""
    return type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "placements")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which to sum values of type ``dtype``: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def square_sums(tensors: Sequence[Tensor], like: Sequence[Tensor] | None = None) -> Tensor:
    """Return ``sum(t^2)`` of each tensor over all its shards.

    Args:
        tensors: whole tensors, DTensors or local shards.
        like: the DTensors that ``tensors`` are the local shards of. None if ``tensors`` are not shards.

    Returns:
        Shape (len(tensors),), in at least float32.
    """
    shards = local_shards(tensors)
    if any(t.dtype.itemsize < 4 for t in shards):
        norms = [torch.linalg.vector_norm(t, dtype=accumulation_dtype(t.dtype)) for t in shards]
    else:
        norms = torch._foreach_norm(shards)
    return over_shards(tensors if like is None else like, torch.stack(norms).square())


def dots(left: Sequence[Tensor], right: Sequence[Tensor], like: Sequence[Tensor] | None = None) -> Tensor:
    """Return ``sum(a * b)`` of each pair of tensors over all their shards.

    Args:
        left: whole tensors, DTensors or local shards.
        right: tensors of the same shapes and sharding.
        like: the DTensors that ``left`` are the local shards of. None if ``left`` are not shards.

    Returns:
        Shape (len(left),), float64.
    """
    products = [(a.double() * b).sum() for a, b in zip(local_shards(left), local_shards(right), strict=True)]
    return over_shards(left if like is None else like, torch.stack(products))


def scalar_for(tensor: Tensor, number: float | Tensor) -> float | Tensor:
    """Return a learning rate in a form that can be multiplied with ``tensor``: a number, or a 0-dim tensor.

    torch allows a learning rate in a CPU tensor for parameters on another device. That one is returned as a number,
    which needs no synchronization with the device.
    """
    if not isinstance(number, Tensor):
        return number
    return number.item() if number.is_cpu and not tensor.is_cpu else number.squeeze()


def over_shards(tensors: Sequence[Tensor], sums: Tensor) -> Tensor:
    """Return sums over local shards, added up over all processes for those tensors that are sharded.

    Args:
        tensors: whole tensors or DTensors.
        sums: a sum over each tensor's local shard, shape (len(tensors),).

    Returns:
        Shape (len(tensors),).
    """
    if not any(is_sharded(t) for t in tensors):
        return sums
    from torch.distributed.tensor import DTensor, Partial, Replicate

    by_sharding: dict[tuple, list[int]] = {}
    for i, tensor in enumerate(tensors):
        if is_sharded(tensor):
            by_sharding.setdefault((tensor.device_mesh, tensor.placements), []).append(i)
    sums = sums.clone()
    for (mesh, placements), indices in by_sharding.items():
        partial = [p if isinstance(p, Replicate) else Partial() for p in placements]
        sums[indices] = DTensor.from_local(sums[indices], mesh, partial).full_tensor()
    return sums


# In the next five functions a number may be a Python number, a 0-dim tensor, or one number per run. The latter is for
# tensors that hold a stack of runs in their first dimension: a tensor (runs, 1, ...) with as many dimensions as theirs.


def add_number(tensors: Sequence[Tensor], number: float | Tensor) -> list[Tensor]:
    """Return ``t + number`` for each tensor."""
    if is_per_run(number):
        return [t + number for t in tensors]
    return torch._foreach_add(tensors, number, **_alpha_for(number))


def add_number_(tensors: Sequence[Tensor], number: float | Tensor) -> None:
    """Add a number to each tensor in place."""
    if is_per_run(number):
        for t in tensors:
            t.add_(number)
    else:
        torch._foreach_add_(tensors, number, **_alpha_for(number))


def scaled(tensors: Sequence[Tensor], number: float | Tensor) -> list[Tensor]:
    """Return ``t * number`` for each tensor."""
    return [t * number for t in tensors] if is_per_run(number) else torch._foreach_mul(tensors, number)


def scale_(tensors: Sequence[Tensor], number: float | Tensor) -> None:
    """Multiply each tensor by a number in place."""
    if is_per_run(number):
        for t in tensors:
            t.mul_(number)
    else:
        torch._foreach_mul_(tensors, number)


def add_(tensors: Sequence[Tensor], addends: Sequence[Tensor], factor: float | Tensor) -> None:
    """Add ``factor * addend`` to each tensor in place."""
    if is_per_run(factor):
        for t, addend in zip(tensors, addends, strict=True):
            t.addcmul_(addend, factor)
    elif isinstance(factor, Tensor):
        torch._foreach_add_(tensors, torch._foreach_mul(addends, factor))
    else:
        torch._foreach_add_(tensors, addends, alpha=factor)


def is_per_run(number: float | Tensor) -> bool:
    """Return True if ``number`` is a tensor with one number for each run of a stack, which broadcasts over its rows."""
    return isinstance(number, Tensor) and number.dim() > 0


def _alpha_for(number: float | Tensor) -> dict[str, float]:
    """Return the keyword arguments with which ``torch._foreach_add`` adds ``number`` without a synchronization.

    Without ``alpha`` torch would read the value of a 0-dim tensor, and wait for its device.
    """
    return {"alpha": 1.0} if isinstance(number, Tensor) else {}


@functools.cache
def compiled(function: Callable, unguarded: tuple[str, ...] = ()) -> Callable:
    """Return ``torch.compile`` of a function, the same object for all callers.

    It compiles again for every new set of shapes. After 8 sets in one process torch warns and runs uncompiled.

    Args:
        function: a function of lists of tensors, numbers and flags.
        unguarded: names of list arguments for which dynamo's guards are dropped. The caller guarantees that their
            shapes, dtypes and strides equal those of a guarded argument. Saves about 10 % of a small network's step.
    """
    options: dict = {  # on the CPU: allow fused multiply-adds, and make one loop per tensor
        "cpp.enable_floating_point_contract_flag": "fast",
        "cpp.max_horizontal_fusion_size": 1,
    }
    if unguarded:
        names = tuple(f"L['{name}']" for name in unguarded)
        options["guard_filter_fn"] = lambda guards: [not guard.name.startswith(names) for guard in guards]
        # torch keeps compilations by code object. A copy keeps them apart from those with all guards.
        function = types.FunctionType(function.__code__.replace(), function.__globals__)
    return torch.compile(function, dynamic=False, options=options)
