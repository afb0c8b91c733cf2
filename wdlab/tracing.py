"""Graphs of the forward methods of networks, traced by ``torch.fx`` without changing the networks.

Used by ``homogeneous``, ``pruning``, ``metrics.lipschitz`` and ``evaluate``.
"""

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
    """Return the graph of a model's forward.

    Raises:
        Exception: of any type, from ``torch.fx`` or the model's own code, if the forward cannot be traced.
    """
    with attributes_restored(model):
        return fx.symbolic_trace(model).graph


@contextlib.contextmanager
def attributes_restored(model: nn.Module) -> Iterator[None]:
    """Restore the plain attributes of the model and of its submodules on leaving the context.

    A forward may store values such as activations in attributes of a module. Inside this context these values may be
    symbols of a graph, or tensors with autograd history. A model with such attributes can be neither copied nor saved.
    """
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


class OperationKind(NamedTuple):
    """A kind of operation, as all modules, functions and tensor methods that perform it in a traced graph."""

    modules: tuple[type[nn.Module], ...]
    functions: tuple[Callable, ...] = ()
    methods: tuple[str, ...] = ()


RELU = OperationKind(  # nonlinear operations with f(c x) = c f(x) for every c > 0
    (nn.ReLU, nn.LeakyReLU, nn.PReLU),
    (
        *(torch.relu, torch.relu_, nn.functional.relu),
        *(nn.functional.leaky_relu, nn.functional.leaky_relu_),
    ),
    ("relu", "relu_"),
)
IDENTITY = OperationKind((nn.Identity,))
DROPOUT = OperationKind((nn.Dropout, nn.Dropout2d), (nn.functional.dropout, nn.functional.dropout2d))
POOLING = OperationKind(
    (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
    (
        *(nn.functional.max_pool2d, nn.functional.avg_pool2d),
        *(nn.functional.adaptive_max_pool2d, nn.functional.adaptive_avg_pool2d),
    ),
)
RESHAPE = OperationKind((nn.Flatten,), (torch.flatten, torch.reshape), ("flatten", "view", "reshape"))

_LAYERS = (nn.Linear, nn.Conv2d)


class LayerLink(NamedTuple):
    """Two layers and the operations between them, as nodes of a graph. Each node is the only user of the one before."""

    first: fx.Node
    between: tuple[fx.Node, ...]
    second: fx.Node


class _TensorsReadWhileTracing(TorchDispatchMode):
    """A record of the tensors that a forward computes with during tracing, for example the weight in ``weight.norm()``.

    The result of such a computation is a constant in the graph, so the graph does not show that the tensor was read.
    ``tensor in record`` is True if the tensor's storage was read.
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
    """A model's forward as a graph, with the queries about its nodes that pairing, pruning and bounds need.

    Args:
        model: the network, traced by ``torch.fx`` in its present mode, training or evaluation.
        instead: advice to the user if the model cannot be traced; the end of the error message.

    Raises:
        ValueError: if the model cannot be traced. The message names the line of the model's code where tracing failed.
    """

    def __init__(self, model: nn.Module, instead: str) -> None:
        read = _TensorsReadWhileTracing()
        try:
            with read:
                self.graph = trace(model)
        except Exception as error:
            reason = f"{_line_in_model_code(error)}{error}"
            raise ValueError(f"cannot see through {type(model).__name__}.forward: {reason}; {instead}") from error
        self.modules = dict(model.named_modules())
        self._reads = self._count_reads(model, read)

    def _count_reads(self, model: nn.Module, read: _TensorsReadWhileTracing) -> Counter[int]:
        """Return, by id, the number of calls of each module and of reads of each parameter and buffer in a forward.

        A call of a module reads its parameters and buffers. ``read`` records the reads that the graph does not show.
        """
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
        """Return the module that a node calls, or None if the node does not call a module."""
        return self.modules[node.target] if node.op == "call_module" else None

    def owns_its_weights(self, module: nn.Module) -> bool:
        """Return True if the module is called once, and nothing else reads its parameters and buffers.

        The result is False also for a module with parameters other than weight and bias, since old-style weight norm
        and torch's pruning compute the weight from parameters of other names.
        """
        own = (*module._parameters.values(), *module._buffers.values())
        plain = module._parameters.keys() <= {"weight", "bias"}
        return plain and all(self._reads[id(one)] == 1 for one in (module, *own) if one is not None)

    def layer(self, node: fx.Node) -> nn.Module | None:
        """Return the Linear or Conv2d layer that a node calls, or None if it calls no layer that can be in a pair.

        Grouped convolutions and layers with shared or parametrized weights cannot be in a pair.
        """
        module = self.module(node)
        # Not by isinstance, since a parametrized layer has a type of its own, a subclass of the layer's class.
        if type(module) not in _LAYERS or getattr(module, "groups", 1) != 1:
            return None
        return module if self.owns_its_weights(module) else None

    def is_a(self, kind: OperationKind, node: fx.Node) -> bool:
        """Return True if a node is an operation of the given kind, as a module, a function or a tensor method."""
        if node.op == "call_module":
            return isinstance(self.modules[node.target], kind.modules)
        if node.op == "call_function":
            return node.target in kind.functions
        return node.op == "call_method" and node.target in kind.methods

    def only_reader(self, node: fx.Node) -> fx.Node | None:
        """Return the node that uses the value of ``node`` as its first argument, or None unless it is the only user.

        Nodes that only take the batch size from the value do not count as users.
        """
        readers = [user for user in node.users if not _only_takes_batch_size(user)]
        return readers[0] if len(readers) == 1 and readers[0].args[:1] == (node,) else None

    def link_from(self, node: fx.Node, passes: Callable[[fx.Node], bool]) -> LayerLink | None:
        """Return the link from a node to the next layer, or None if there is no such link.

        Args:
            node: candidate for the first layer.
            passes: returns True for an operation that may lie between the layers.
        """
        if self.layer(node) is None:
            return None
        first, between, current = node, [], self.only_reader(node)
        while current is not None:
            if self.layer(current) is not None:
                return LayerLink(first, tuple(between), current)
            if not passes(current):
                return None
            between.append(current)
            current = self.only_reader(current)
        return None

    def columns_per_unit(self, link: LayerLink) -> int:
        """Return how many adjacent columns of the second layer's weight multiply one unit of the first layer.

        The units are the channels of a convolution's output, or the last dimension of a linear layer's output. A unit
        has several columns if the channels of a convolution are flattened for a linear layer. The number is 0 if
        columns and units do not match. It is 0 also for pooling after a linear layer or a flattening, since that mixes
        units.
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
        """Return True if a node flattens all dimensions but the first, the batch.

        A ``view`` or ``reshape`` must have the sizes (batch size, -1). With a number from the model's code the result
        is False, since pruning would change that size.
        """
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
        """Return True if ``size`` is certainly the batch size of ``node``'s value.

        This holds if the size was taken from ``node`` itself, or from an earlier node and no operation between the two
        can change the first dimension.
        """
        source = _source_of_batch_size(size)
        while node is not source:
            module = self.module(node)
            regroups = isinstance(module, nn.Flatten | nn.Unflatten)
            known = module is not None or any(self.is_a(kind, node) for kind in (RELU, DROPOUT, POOLING))
            if source is None or regroups or not known or not isinstance(node.args[0], fx.Node):
                return False
            node = node.args[0]
        return True


def _is_shape(node: object) -> bool:
    """Return True if a node is ``x.shape`` or ``x.size()``."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1 and not node.kwargs
    return node.target is getattr and node.args[1] == "shape"


def _source_of_batch_size(node: object) -> fx.Node | None:
    """Return the node ``x`` if ``node`` is ``x.size(0)``, ``x.size()[0]`` or ``x.shape[0]``, else None."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_method" and node.target == "size":
        return node.args[0] if node.args[1:] == (0,) else None
    if node.target is operator.getitem and node.args[1] == 0 and _is_shape(node.args[0]):
        return node.args[0].args[0]
    return None


def _only_takes_batch_size(node: fx.Node) -> bool:
    if _is_shape(node):
        return all(_source_of_batch_size(user) is not None for user in node.users)
    return _source_of_batch_size(node) is not None


def _line_in_model_code(error: Exception) -> str:
    """Return file, line number and source line in the model's code where an error arose, as the start of a message.

    The result is empty if the traceback has frames of torch only.
    """
    of_torch = Path(torch.__file__).parent
    frames = traceback.extract_tb(error.__traceback__)[2:]  # without the frames of TracedModel and trace
    own = [frame for frame in frames if frame.line and not Path(frame.filename).is_relative_to(of_torch)]
    return f"{own[-1].filename}, line {own[-1].lineno}, {own[-1].line!r}: " if own else ""
