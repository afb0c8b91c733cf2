"""Networks that are looked at without being changed. Used by ``homogeneous`` and ``evaluate``."""

import contextlib
import operator
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def trace(model: nn.Module) -> fx.Graph:
    """The graph of a model's forward.

    Raises:
        Exception: what ``torch.fx`` raises where it cannot follow.
    """
    with left_as_it_was(model):
        return fx.symbolic_trace(model).graph


@contextlib.contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back what the model's forward keeps on it within, such as its activations.

    They would be graphs' symbols and tensors with a history, with which a model can be neither copied nor saved.
    """
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


class Kind(NamedTuple):
    """Ways in which one kind of operation appears in a traced graph."""

    modules: tuple[type[nn.Module], ...]
    functions: tuple[Callable, ...] = ()
    methods: tuple[str, ...] = ()


RELU = Kind(  # what scaling by c > 0 commutes with, and bends
    (nn.ReLU, nn.LeakyReLU, nn.PReLU),
    (
        *(torch.relu, torch.relu_, nn.functional.relu),
        *(nn.functional.leaky_relu, nn.functional.leaky_relu_),
    ),
    ("relu", "relu_"),
)
IDENTITY = Kind((nn.Identity,))
DROPOUT = Kind((nn.Dropout, nn.Dropout2d), (nn.functional.dropout, nn.functional.dropout2d))
POOLING = Kind(
    (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
    (
        *(nn.functional.max_pool2d, nn.functional.avg_pool2d),
        *(nn.functional.adaptive_max_pool2d, nn.functional.adaptive_avg_pool2d),
    ),
)
RESHAPE = Kind((nn.Flatten,), (torch.flatten, torch.reshape), ("flatten", "view", "reshape"))

_LAYERS = (nn.Linear, nn.Conv2d)


class Link(NamedTuple):
    """A layer, what its output runs through, and the one layer that reads it: nodes of a traced graph."""

    first: fx.Node
    between: tuple[fx.Node, ...]
    second: fx.Node


class _ReadWhileTracing(TorchDispatchMode):
    """Finds the tensors that a forward computes with while it is traced, such as the norm of a weight.

    What comes of it is a constant in the graph, which does not say what it was made of.
    """

    def __init__(self) -> None:
        super().__init__()
        self._storages: set[int] = set()

    def __torch_dispatch__(self, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        leaves = tree_leaves((args, kwargs))
        self._storages |= {leaf.untyped_storage()._cdata for leaf in leaves if isinstance(leaf, Tensor)}
        return function(*args, **(kwargs or {}))

    def __contains__(self, tensor: Tensor) -> bool:
        return bool(self._storages) and tensor.untyped_storage()._cdata in self._storages


class TracedModel:
    """A model's forward as a graph, and what pairing and pruning ask of it.

    Args:
        model: traced by ``torch.fx`` in the mode, training or evaluation, that it is in.
        instead: what to do where that fails; the end of the error message.

    Raises:
        ValueError: if the model cannot be traced, with the line of its code where that ended.
    """

    def __init__(self, model: nn.Module, instead: str) -> None:
        read = _ReadWhileTracing()
        try:
            with read:
                self.graph = trace(model)
        except Exception as error:
            reason = f"{_own_line(error)}{error}"
            raise ValueError(f"cannot see through {type(model).__name__}.forward: {reason}; {instead}") from error
        self.modules = dict(model.named_modules())
        self._reads = self._count_reads(model, read)

    def _count_reads(self, model: nn.Module, read: "_ReadWhileTracing") -> Counter[int]:
        """How often each module is called and each parameter and buffer is read in a forward, by its id."""
        named = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        reads: Counter[int] = Counter()
        for node in self.graph.nodes:
            if node.op == "call_module":
                module = self.modules[node.target]
                reads.update(map(id, (module, *module.parameters(), *module.buffers())))
            elif node.op == "get_attr" and node.target in named:
                reads[id(named[node.target])] += 1
        reads.update(id(tensor) for tensor in named.values() if tensor in read)
        return reads

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, or None."""
        return self.modules[node.target] if node.op == "call_module" else None

    def owns_its_weights(self, module: nn.Module) -> bool:
        """Whether the module is called once, and all it has is its own: not made by a parametrization, read only there.

        Running statistics count too.
        """
        own = (*module._parameters.values(), *module._buffers.values())
        # Old-style weight norm and pruning keep what they make a weight of under another name.
        plain = module._parameters.keys() <= {"weight", "bias"}
        return plain and all(self._reads[id(one)] == 1 for one in (module, *own) if one is not None)

    def layer(self, node: fx.Node) -> nn.Module | None:
        """The linear or convolution layer that a node calls, if it can be part of a pair, else None."""
        module = self.module(node)
        if type(module) not in _LAYERS or getattr(module, "groups", 1) != 1:  # parametrized layers are of other types
            return None
        return module if self.owns_its_weights(module) else None

    def is_a(self, kind: Kind, node: fx.Node) -> bool:
        """Whether a node is an operation of this kind, whatever its spelling."""
        if node.op == "call_module":
            return isinstance(self.modules[node.target], kind.modules)
        if node.op == "call_function":
            return node.target in kind.functions
        return node.op == "call_method" and node.target in kind.methods

    def reader(self, node: fx.Node) -> fx.Node | None:
        """The only node that reads a node's values, as its first argument; None if there is no such one.

        Who asks for the batch size alone reads no values.
        """
        readers = [user for user in node.users if not _asks_for_batch_size(user)]
        return readers[0] if len(readers) == 1 and readers[0].args[:1] == (node,) else None

    def link(self, node: fx.Node, passes: Callable[[fx.Node], bool]) -> Link | None:
        """The link that starts at a layer's node and runs through nodes that pass, or None if there is none."""
        if self.layer(node) is None:
            return None
        first, between, current = node, [], self.reader(node)
        while current is not None:
            if self.layer(current) is not None:
                return Link(first, tuple(between), current)
            if not passes(current):
                return None
            between.append(current)
            current = self.reader(current)
        return None

    def columns_per_unit(self, link: Link) -> int:
        """How many neighbouring inputs of the second layer come from one unit of the first; 0 if they do not line up.

        More than one where convolution maps are flattened for a linear layer. Units lie along the channels of a map,
        and along the last dimension of what a linear layer puts out, which pooling would mix.
        """
        first, second = self.layer(link.first), self.layer(link.second)
        flat = isinstance(first, nn.Linear)
        for node in link.between:
            if flat and self.is_a(POOLING, node):
                return 0
            flat = flat or self.flattens(node)
        count, rest = divmod(second.weight.shape[1], first.weight.shape[0])
        if rest or flat != isinstance(second, nn.Linear):
            return 0
        return count if count == 1 or isinstance(first, nn.Conv2d) else 0

    def flattens(self, node: fx.Node) -> bool:
        """Whether a node lays everything but the batch side by side, and that without a size written as a number."""
        if not self.is_a(RESHAPE, node):
            return False
        if node.op == "call_module":
            module = self.modules[node.target]
            return (module.start_dim, module.end_dim) == (1, -1)
        if node.target in (torch.flatten, "flatten"):
            given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
            return {"start_dim": 0, "end_dim": -1, **given} == {"start_dim": 1, "end_dim": -1}
        sizes = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple | list) else node.args[1:]
        return len(sizes) == 2 and sizes[1] == -1 and self._is_batch_size(sizes[0], node.args[0])

    def _is_batch_size(self, size: object, node: fx.Node) -> bool:
        """Whether a size is the batch size of a node: asked of it, or of one before with nothing regrouped since."""
        asked = _whose_batch_size(size)
        while node is not asked:
            module = self.module(node)
            regroups = isinstance(module, nn.Flatten | nn.Unflatten)
            known = module is not None or any(self.is_a(kind, node) for kind in (RELU, DROPOUT, POOLING))
            if asked is None or regroups or not known or not isinstance(node.args[0], fx.Node):
                return False
            node = node.args[0]
        return True


def _is_shape(node: object) -> bool:
    """Whether a node is ``x.shape`` or ``x.size()``."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1 and not node.kwargs
    return node.target is getattr and node.args[1] == "shape"


def _whose_batch_size(node: object) -> fx.Node | None:
    """The ``x`` of ``x.size(0)``, ``x.size()[0]`` and ``x.shape[0]``, or None for anything else."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_method" and node.target == "size":
        return node.args[0] if node.args[1:] == (0,) else None
    if node.target is operator.getitem and node.args[1] == 0 and _is_shape(node.args[0]):
        return node.args[0].args[0]
    return None


def _asks_for_batch_size(node: fx.Node) -> bool:
    if _is_shape(node):
        return all(_whose_batch_size(user) is not None for user in node.users)
    return _whose_batch_size(node) is not None


def _own_line(error: Exception) -> str:
    """Where in the model's own code an error arose, as the start of a sentence; empty if only torch's code is seen."""
    of_torch = Path(torch.__file__).parent
    frames = traceback.extract_tb(error.__traceback__)[2:]  # the first two are calls in this file and in tracing.py
    own = [frame for frame in frames if frame.line and not Path(frame.filename).is_relative_to(of_torch)]
    return f"{own[-1].filename}, line {own[-1].lineno}, {own[-1].line!r}: " if own else ""
