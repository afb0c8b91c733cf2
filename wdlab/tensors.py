"""Arithmetic over lists of tensors, including sharded tensors (DTensor). Used by the regularizers and optimizers."""

import functools
import types
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def local_shards(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors detached, and for a DTensor this process's shard. The results share the tensors' memory."""
    return [t.detach() if type(t) in (Tensor, nn.Parameter) else _shard(t) for t in tensors]


def _shard(tensor: Tensor) -> Tensor:
    return tensor.detach().to_local() if is_sharded(tensor) else tensor.detach()


def is_sharded(tensor: Tensor) -> bool:
    """Return True if the tensor is a DTensor, whose elements may be distributed over processes."""
    return type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "placements")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which to sum values of ``dtype``: ``dtype`` itself, but at least float32."""
    return torch.promote_types(dtype, torch.float32)


def square_sums(tensors: Sequence[Tensor], like: Sequence[Tensor] | None = None) -> Tensor:
    """Return ``sum(t^2)`` for each tensor ``t``, summed over all shards of ``t``.

    Args:
        tensors: whole tensors, DTensors or local shards.
        like: the DTensors that ``tensors`` are the local shards of; None if ``tensors`` are not shards.

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
    """Return ``sum(a * b)`` for each pair of tensors from ``left`` and ``right``, summed over all their shards.

    Args:
        left: whole tensors, DTensors or local shards.
        right: tensors of the same shapes and sharding.
        like: the DTensors that ``left`` are the local shards of; None if ``left`` are not shards.

    Returns:
        Shape (len(left),), float64.
    """
    products = [(a.double() * b).sum() for a, b in zip(local_shards(left), local_shards(right), strict=True)]
    return over_shards(left if like is None else like, torch.stack(products))


def scalar_for(tensor: Tensor, number: float | Tensor) -> float | Tensor:
    """Return a learning rate in a form that can be multiplied with ``tensor``: a Python number or a 0-dim tensor.

    torch allows a learning rate in a CPU tensor for parameters on another device. Such a learning rate is returned as a
    Python number, which needs no synchronization with the device.

    Args:
        tensor: the tensor to multiply.
        number: the learning rate, a number or a tensor with one element.
    """
    if not isinstance(number, Tensor):
        return number
    return number.item() if number.is_cpu and not tensor.is_cpu else number.squeeze()


def over_shards(tensors: Sequence[Tensor], sums: Tensor) -> Tensor:
    """Return the sum of each tensor over all its shards, from the sums over this process's shards.

    Args:
        tensors: whole tensors or DTensors.
        sums: the sum over each whole tensor or over each DTensor's local shard, shape (len(tensors),).

    Returns:
        Shape (len(tensors),). The entries of whole tensors are the same as in ``sums``; the entries of DTensors are
        added up over the processes, which communicate for this.
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


# In the next five functions, ``number`` or ``factor`` may be a Python number, a 0-dim tensor, or one number per run.
# One number per run is for tensors whose first dimension is the runs of a stack. It is a tensor (runs, 1, ...) with as
# many dimensions as those tensors.


def add_number(tensors: Sequence[Tensor], number: float | Tensor) -> list[Tensor]:
    """Return ``t + number`` for each tensor ``t``. For a stack of runs, ``number`` may have a number per run."""
    if is_per_run(number):
        return [t + number for t in tensors]
    return torch._foreach_add(tensors, number, **_alpha_for(number))


def add_number_(tensors: Sequence[Tensor], number: float | Tensor) -> None:
    """Add ``number`` to each tensor in place. For a stack of runs, ``number`` may have a number per run."""
    if is_per_run(number):
        for t in tensors:
            t.add_(number)
    else:
        torch._foreach_add_(tensors, number, **_alpha_for(number))


def scaled(tensors: Sequence[Tensor], number: float | Tensor) -> list[Tensor]:
    """Return ``t * number`` for each tensor ``t``. For a stack of runs, ``number`` may have a number per run."""
    return [t * number for t in tensors] if is_per_run(number) else torch._foreach_mul(tensors, number)


def scale_(tensors: Sequence[Tensor], number: float | Tensor) -> None:
    """Multiply each tensor by ``number`` in place. For a stack of runs, ``number`` may have a number per run."""
    if is_per_run(number):
        for t in tensors:
            t.mul_(number)
    else:
        torch._foreach_mul_(tensors, number)


def add_(tensors: Sequence[Tensor], addends: Sequence[Tensor], factor: float | Tensor) -> None:
    """Add ``factor * addend`` to each tensor in place. For a stack of runs, ``factor`` may have a number per run.

    Args:
        tensors: the tensors to change.
        addends: a tensor for each of ``tensors``, in its shape.
        factor: a Python number, a 0-dim tensor, or for a stack a tensor (runs, 1, ...).
    """
    if is_per_run(factor):
        for t, addend in zip(tensors, addends, strict=True):
            t.addcmul_(addend, factor)
    elif isinstance(factor, Tensor):
        torch._foreach_add_(tensors, torch._foreach_mul(addends, factor))
    else:
        torch._foreach_add_(tensors, addends, alpha=factor)


def is_per_run(number: float | Tensor) -> bool:
    """Return True if ``number`` is a tensor with one number per run of a stack: a tensor with dimensions."""
    return isinstance(number, Tensor) and number.dim() > 0


def _alpha_for(number: float | Tensor) -> dict[str, float]:
    """Return keyword arguments for ``torch._foreach_add`` to add ``number`` without waiting for a device.

    For a 0-dim tensor they are ``alpha=1.0``, for a Python number {}. Without ``alpha``, torch would read the tensor's
    value, and so wait for its device.
    """
    return {"alpha": 1.0} if isinstance(number, Tensor) else {}


@functools.cache
def compiled(function: Callable, unguarded: tuple[str, ...] = ()) -> Callable:
    """Return ``function`` compiled by ``torch.compile``. Calls with the same arguments return the same object.

    torch compiles the function anew for every new set of shapes. After 8 sets in one process, torch warns and runs the
    function uncompiled.

    Args:
        function: a function of lists of tensors, numbers and flags.
        unguarded: names of list arguments for which dynamo's guards are dropped. The caller guarantees that their
            shapes, dtypes and strides equal those of a guarded argument. This saved about 10 % of the time of a small
            network's step.
    """
    options: dict = {  # on the CPU: allow fused multiply-adds, and make one loop per tensor
        "cpp.enable_floating_point_contract_flag": "fast",
        "cpp.max_horizontal_fusion_size": 1,
    }
    if unguarded:
        names = tuple(f"L['{name}']" for name in unguarded)
        options["guard_filter_fn"] = lambda guards: [not guard.name.startswith(names) for guard in guards]
        # torch stores compilations by code object. The copied code object keeps the compilations with dropped guards
        # separate from the compilations with all guards.
        function = types.FunctionType(function.__code__.replace(), function.__globals__)
    return torch.compile(function, dynamic=False, options=options)
