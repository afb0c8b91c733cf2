"""A pretend GPU, for tests on machines without one: torch's device ``privateuseone``, made in Python, as ``pretend``.

A tensor there keeps its values in a tensor on the CPU and computes with the CPU's kernels. For everybody else it is on
another device, with the rules that CUDA has:

* It cannot be mixed with tensors on the CPU. The exceptions are CUDA's own: one 0-dim CPU tensor beside it in an
  elementwise operation, as the number of ``_foreach_mul`` and ``_foreach_div`` (not of ``_foreach_add``), and indices.
* The host waits where CUDA makes it wait, and every wait is counted: where a value is read (``item``, ``bool``,
  ``tolist``, ``nonzero``, boolean masks, ``torch.equal``), where a tensor is copied between the devices without
  ``non_blocking``, and where torch makes such a copy on its way (``torch.tensor(1.0, device=...)``, 0-dim CPU tensors
  in ``torch.where``, CPU indices).
* Random numbers come from a stream of its own, which ``torch.manual_seed`` seeds and which no CPU generator replaces.

So a test proves which device every tensor of the code is on, that it waits only where it is meant to, and that nothing
it computes depends on being on the CPU. It proves nothing about what such a device is there for: there are no kernels
(rounding is the CPU's), no streams (nothing is late), no memory to run out of, no autocast and no pinned memory.

torch starts the threads of its autograd for the devices that there are at the first backward pass of a process, so
import this module before that; pytest does when it collects the tests.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion
from torch.utils import backend_registration

NAME = "pretend"
MISSING = None if TorchVersion(torch.__version__) >= (2, 15) else "needs torch >= 2.15"
PROJECT = Path(__file__).resolve().parent.parent
CODE = tuple(str(PROJECT / folder) for folder in ("wdlab", "tests"))

READ = {  # operations whose result, or the size of whose result, the host has to read
    *("_local_scalar_dense", "equal", "allclose", "is_nonzero", "nonzero", "masked_select", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive", "_linalg_eigh", "_linalg_svd", "linalg_eig"),
}
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}

_counts: list[list[str]] = []  # of those who count


@contextlib.contextmanager
def waits() -> Iterator[list[str]]:
    """Collect the waits of the host: of each the operation, and the line of this project that asked for it."""
    found: list[str] = []
    _counts.append(found)
    try:
        yield found
    finally:
        _counts[:] = [count for count in _counts if count is not found]


def wait_for(what: str) -> None:
    """Count one wait."""
    if _counts:
        frames = (f for f in traceback.extract_stack() if f.filename.startswith(CODE) and f.filename != __file__)
        places = [f"{Path(f.filename).relative_to(PROJECT)}:{f.lineno}" for f in frames]
        for count in _counts:
            count.append(f"{what} ({places[-1] if places else 'in a backward pass'})")


class PretendTensor(Tensor):
    """A tensor on the pretend device.

    Args:
        values: on the CPU. Views share them as they do on any device.
    """

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "PretendTensor":
        return Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            values.stride(),
            values.storage_offset(),
            dtype=values.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __repr__(self, **_: object) -> str:
        return f"PretendTensor({self.values})"

    def __reduce_ex__(self, protocol: int) -> Any:
        """Save it as a tensor on the CPU, as which ``wdlab.checkpoint`` loads everything."""
        return self.detach().cpu().__reduce_ex__(protocol)

    # With these two a module moves its parameters here by swapping the objects, so that optimizers keep theirs.

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: object) -> "PretendTensor":
        return PretendTensor(inner["values"])

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if function == Tensor.tolist:
                wait_for("tolist")
                return args[0].values.tolist()
            found = function(*args, **(kwargs or {}))
            if function == Tensor.data.__set__:
                args[0].values = args[1].values
            return found

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        known: dict[int, Tensor] = {}  # the arguments, by the ids of their values

        def inner(t: Tensor) -> Tensor:
            known[id(_values(t))] = t
            return _values(t)

        inner_args = _mapped(inner, args)
        inner_kwargs = {key: _mapped(inner, value) for key, value in kwargs.items()}
        _check_devices(function, args, kwargs, [t for t in known.values() if not isinstance(t, cls)])
        _count(function, args, kwargs)
        device = kwargs.get("device")
        if device is not None:
            inner_kwargs["device"] = torch.device("cpu")
        random = torch.Tag.nondeterministic_seeded in function.tags
        with _stream.active() if random else contextlib.nullcontext():
            found = function(*inner_args, **inner_kwargs)

        def outer(t: Tensor) -> Tensor:
            if id(t) in known:  # what was written to
                return known[id(t)]
            return cls(t) if device is None or device.type == NAME else t

        return _mapped(outer, found)


def _values(t: Tensor) -> Tensor:
    return t.values if isinstance(t, PretendTensor) else t


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """An argument or a result of an operation, with its tensors changed; torch's own pytrees take half of the time."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_mapped(change, v) for v in value) if type(value) in (list, tuple) else value


def _check_devices(function: Any, args: tuple, kwargs: dict[str, Any], others: list[Tensor]) -> None:
    """Raise a RuntimeError where CUDA would: for tensors of two devices, and for a CPU generator."""
    name = function.overloadpacket.__name__
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu' ({function})")
    if not others or name in ("copy_", "_foreach_copy_"):
        return
    scalars = all(t.dim() == 0 for t in others)
    if name in INDEXING:
        value = args[2] if len(args) > 2 else args[0]
        allowed = isinstance(args[0], PretendTensor) and (isinstance(value, PretendTensor) or value.dim() == 0)
    elif name.rstrip("_") in ("_foreach_mul", "_foreach_div"):
        allowed = function._overloadname == "Tensor" and scalars
    elif name in ("where", "masked_fill", "masked_fill_", "fill_"):
        allowed = scalars and (name == "where" or isinstance(args[0], PretendTensor))
    else:
        written = [a for a in others if any(a is args[i] for i in _written(function) if i < len(args))]
        allowed = torch.Tag.pointwise in function.tags and scalars and len(others) == 1 and not written
    if not allowed:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! "
            f"({function})"
        )


def _written(function: Any) -> Iterable[int]:
    return (i for i, a in enumerate(function._schema.arguments) if a.alias_info is not None and a.alias_info.is_write)


def _count(function: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    name = function.overloadpacket.__name__
    if name in READ or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        waited = True
    elif name in ("copy_", "_foreach_copy_"):
        blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        waited = blocking and len({type(_first(side)) is PretendTensor for side in args[:2]}) == 2
    elif name == "_to_copy":
        device = kwargs.get("device")
        waited = device is not None and device.type == "cpu" and not kwargs.get("non_blocking", False)
    elif name == "where":
        waited = any(not isinstance(t, PretendTensor) for t in args)
    elif name in ("masked_fill", "masked_fill_"):
        waited = isinstance(args[2], PretendTensor)
    elif name in INDEXING:
        waited = _index_waits(args)
    else:
        waited = False
    if waited:
        wait_for(str(function))


def _first(side: Tensor | list[Tensor]) -> Tensor:
    return side[0] if isinstance(side, list | tuple) else side


def _index_waits(args: tuple) -> bool:
    """For the places in a mask, unless they all get one number; for indices on the CPU, which are copied."""
    indices = [index for index in args[1] if index is not None]
    if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
        return len(args) < 3 or args[2].numel() != 1
    return any(not isinstance(t, PretendTensor) for t in (*indices, *args[2:3]))


class _Stream:
    """The state of the device's random numbers."""

    def __init__(self) -> None:
        self.seed(0)

    def seed(self, seed: int) -> None:
        self.state = torch.Generator().manual_seed(seed).get_state()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The CPU's kernels draw from it."""
        of_cpu = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            yield
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(of_cpu)


_stream = _Stream()


class _Module:
    """``torch.pretend``: what torch and wdlab call of ``torch.cuda`` too.

    Attributes:
        available: whether torch may take the device for one that is there; false outside of these tests, since a few
            parts of torch choose a device by themselves.
    """

    available = False

    def is_available(self) -> bool:
        return self.available

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        _stream.seed(seed)

    def get_rng_state(self, device: Any = None) -> Tensor:
        return _stream.state.clone()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        _stream.state = state.clone()

    def synchronize(self, device: Any = None) -> None:
        wait_for("synchronize")


module = _Module()


def _empty(size: list[int], *, dtype: Any = None, memory_format: Any = None, **_: object) -> Tensor:
    return PretendTensor(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size: list[int], stride: list[int], *, dtype: Any = None, **_: object) -> Tensor:
    return PretendTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    if type(source) is not type(to) and not non_blocking:
        wait_for("_copy_from")
    _values(to).copy_(_values(source))
    return to


if MISSING is None:
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=module)
    _library = torch.library.Library("aten", "IMPL")  # what tensors here are made by, where none is given
    _library.impl("empty.memory_format", _empty, "PrivateUse1")
    _library.impl("empty_strided", _empty_strided, "PrivateUse1")
    _library.impl("_copy_from", _copy_from, "PrivateUse1")
