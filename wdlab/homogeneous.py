"""Which parts of a network a weight decay acts on: the decayed weights, and the pairs of homogeneous layers.

A *homogeneous unit* is a ReLU neuron (or channel) with input weights ``w`` (a row of the first layer) and output
weights ``v`` (a column of the second). Scaling ``w`` by c > 0 and ``v`` by 1/c does not change the network, so what
matters is the product ``|w| |v|``; its sum over units is the path-norm (P1, arXiv 2210.03069).

Used by the regularizers, the metrics, pruning, and anyone who needs parameter lists for their own optimizer.
"""

import itertools
import operator
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wdlab.tracing import trace

Pair = tuple[nn.Module, nn.Module]


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
_WEIGHT_OWNERS = (nn.Linear, nn.Bilinear, nn.Embedding, nn.modules.conv._ConvNd)
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_ATTENTION_BIASES = ("in_proj_bias", "bias_k", "bias_v")
_NOT_DECAYED = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.PReLU,
)


def weights(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that weight decay is meant for, found by the module that owns them.

    Decayed: ``weight`` of every linear, convolution and embedding layer and the input projections of attention, each
    once even if shared. Not decayed: biases and everything in a normalization layer.

    Raises:
        ValueError: if a parameter belongs to a module of a kind this rule does not know (pass an explicit list to the
            regularizer instead), or if the model has no weight at all.
    """
    found: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            decayed = _is_decayed(module, name)
            if decayed is None:
                raise ValueError(
                    f"cannot tell whether {path or 'the model'}.{name} ({type(module).__name__}) is to be decayed: "
                    "pass the list of parameters yourself"
                )
            if decayed:
                found.setdefault(id(parameter), parameter)
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear, convolution or embedding weight to decay")
    return list(found.values())


def _is_decayed(module: nn.Module, name: str) -> bool | None:
    """Whether the module's parameter of this name is a weight; None if this rule does not know it."""
    if isinstance(module, _WEIGHT_OWNERS) and name in ("weight", "bias"):
        return name == "weight"
    if isinstance(module, nn.MultiheadAttention) and name in (*_ATTENTION_WEIGHTS, *_ATTENTION_BIASES):
        return name in _ATTENTION_WEIGHTS
    return False if isinstance(module, _NOT_DECAYED) else None


def homogeneous_pairs(model: nn.Module, across_pooling: bool = False) -> list[Pair]:
    """The disjoint (input layer, output layer) pairs of homogeneous units, in forward order.

    A pair is Linear -> ReLU -> Linear or Conv2d -> ReLU -> Conv2d (LeakyReLU and PReLU count as ReLU; groups must be
    1), with nothing else in between and no other reader of what lies in between. Pairs are taken greedily from the
    input on, as the authors of P1 do: layers 1-2, 3-4, 5-6 of an MLP. Layers whose weights are shared, or made by a
    parametrization such as weight norm, are in no pair.

    Args:
        model: of batches, which come first in every tensor.
        across_pooling: let max and average pooling, dropout and flattening lie in between too, as long as a unit of
            the first layer meets one input of the second: Conv2d -> ReLU -> pooling -> Conv2d, and Conv2d -> ReLU ->
            global pooling -> flatten -> Linear.

    Returns:
        A list of ``(first, second)`` modules. Row ``i`` of ``first.weight`` and column ``i`` of ``second.weight``
        belong to unit ``i``. Empty if the model has no such pair.

    Raises:
        ValueError: if ``torch.fx`` cannot trace the model's forward (data-dependent control flow).
    """
    traced = _trace_for_pairs(model)
    return [(traced.layer(link.first), traced.layer(link.second)) for link in _pair_links(traced, across_pooling)]


def pairs_form_a_chain(model: nn.Module, across_pooling: bool = False) -> bool:
    """Whether each pair's output reaches the next pair through ReLU, pooling, flattening and dropout alone.

    Only then does scaling one pair up and the next one down leave the network's function alone.

    Args:
        model, across_pooling: as in ``homogeneous_pairs``.

    Raises:
        ValueError: as ``homogeneous_pairs``.
    """
    traced = _trace_for_pairs(model)
    links = _pair_links(traced, across_pooling)
    return all(_reaches(traced, one.second, following.first) for one, following in itertools.pairwise(links))


def _trace_for_pairs(model: nn.Module) -> "TracedModel":
    return TracedModel(model, instead="pass the pairs of layers yourself")


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


def _pair_links(traced: TracedModel, across_pooling: bool) -> list[Link]:
    """The disjoint pairs, taken greedily from the input on."""
    kinds = (RELU, IDENTITY, DROPOUT, POOLING) if across_pooling else (RELU, IDENTITY)

    def passes(node: fx.Node) -> bool:
        return any(traced.is_a(kind, node) for kind in kinds) or (across_pooling and traced.flattens(node))

    links: list[Link] = []
    taken: set[fx.Node] = set()
    for node in traced.graph.nodes:
        link = None if node in taken else traced.link(node, passes)
        if link is None or traced.columns_per_unit(link) != 1:
            continue
        if sum(traced.is_a(RELU, between) for between in link.between) == 1:
            links.append(link)
            taken.add(link.second)
    return links


def _reaches(traced: TracedModel, node: fx.Node, goal: fx.Node) -> bool:
    """Whether ``node`` is read by ``goal`` alone, through operations that scaling commutes with."""
    current = traced.reader(node)
    while current is not None and current is not goal:
        if not any(traced.is_a(kind, current) for kind in (RELU, IDENTITY, DROPOUT, POOLING, RESHAPE)):
            return False
        current = traced.reader(current)
    return current is goal


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


def input_norms(layer: nn.Module) -> Tensor:
    """L2 norm of every unit's input weights: rows of ``layer.weight`` (out, in, ...) -> shape (out,)."""
    return row_norms(layer.weight.detach())


def output_norms(layer: nn.Module) -> Tensor:
    """L2 norm of every unit's output weights: columns of ``layer.weight`` (out, in, ...) -> shape (in,).

    Of ``column_norms`` it differs in rounding, and is five times as fast. A step of PathProx has the other, as the
    committed runs were made with it.
    """
    weight = layer.weight.detach()
    return weight.to(_norm_dtype(weight)).square().sum([d for d in range(weight.dim()) if d != 1]).sqrt()


def row_norms(weight: Tensor) -> Tensor:
    """L2 norms over everything but the first dimension, at least float32."""
    return torch.linalg.vector_norm(weight.flatten(1), dim=1, dtype=_norm_dtype(weight))


def column_norms(weight: Tensor) -> Tensor:
    """L2 norms over everything but the second dimension, at least float32."""
    other = [d for d in range(weight.dim()) if d != 1]
    return torch.linalg.vector_norm(weight, dim=other, dtype=_norm_dtype(weight))


def unit_paths(pairs: Iterable[Pair]) -> list[Tensor]:
    """``|w| |v|`` of every unit, one tensor of shape (units,) per pair; its sum is the pair's path-norm."""
    return [input_norms(first) * output_norms(second) for first, second in pairs]


def _norm_dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
