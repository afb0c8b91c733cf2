"""Which parts of a network a weight decay acts on: the decayed weights, and the pairs of homogeneous layers.

A *homogeneous unit* is a ReLU neuron (or channel) with input weights ``w`` (a row of the first layer) and output
weights ``v`` (a column of the second). Scaling ``w`` by c > 0 and ``v`` by 1/c does not change the network, so what
matters is the product ``|w| |v|``; its sum over units is the path-norm (P1, arXiv 2210.03069).

Used by the regularizers, the metrics, and anyone who needs parameter lists for their own optimizer.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

Pair = tuple[nn.Module, nn.Module]


class _Kind(NamedTuple):
    """Ways in which one kind of operation appears in a traced graph."""

    modules: tuple[type[nn.Module], ...]
    functions: tuple[Callable, ...]
    methods: tuple[str, ...]


_RELU = _Kind(
    (nn.ReLU, nn.LeakyReLU),
    (torch.relu, nn.functional.relu, nn.functional.leaky_relu),
    ("relu", "relu_"),
)
_IDENTITY = _Kind((nn.Identity,), (), ())
_SCALING = _Kind(  # operations that scaling by c > 0 commutes with, besides those above
    (nn.Flatten, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
    (
        *(torch.flatten, nn.functional.dropout, nn.functional.max_pool2d, nn.functional.avg_pool2d),
        *(nn.functional.adaptive_avg_pool2d,),
    ),
    ("flatten", "view", "reshape"),
)
_LAYERS = (nn.Linear, nn.Conv2d)
_WEIGHT_OWNERS = (nn.Linear, nn.Bilinear, nn.Embedding, nn.modules.conv._ConvNd)
_NOT_DECAYED = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.PReLU,
)


def weights(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that weight decay is meant for, found by the module that owns them.

    Decayed: ``weight`` of every linear, convolution and embedding layer, each once even if shared. Not decayed: biases
    and everything in a normalization layer.

    Raises:
        ValueError: if a parameter belongs to a module of a kind this rule does not know (pass an explicit list to the
            regularizer instead), or if the model has no weight at all.
    """
    found: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, _WEIGHT_OWNERS) and name in ("weight", "bias"):
                if name == "weight":
                    found.setdefault(id(parameter), parameter)
            elif not isinstance(module, _NOT_DECAYED):
                raise ValueError(
                    f"cannot tell whether {path or 'the model'}.{name} ({type(module).__name__}) is to be decayed: "
                    "pass the list of parameters yourself"
                )
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear, convolution or embedding weight to decay")
    return list(found.values())


def homogeneous_pairs(model: nn.Module) -> list[Pair]:
    """The disjoint (input layer, output layer) pairs of homogeneous units, in forward order.

    A pair is Linear -> ReLU -> Linear or Conv2d -> ReLU -> Conv2d (LeakyReLU counts as ReLU; groups must be 1), with
    nothing else in between and no other reader of what lies in between. Pairs are taken greedily from the input on,
    as the authors of P1 do: layers 1-2, 3-4, 5-6 of an MLP.

    Returns:
        A list of ``(first, second)`` modules. Row ``i`` of ``first.weight`` and column ``i`` of ``second.weight``
        belong to unit ``i``. Empty if the model has no such pair.

    Raises:
        ValueError: if ``torch.fx`` cannot trace the model's forward (data-dependent control flow).
    """
    modules, nodes = _find_pairs(model)
    return [(modules[first.target], modules[second.target]) for first, second in nodes]


def pairs_form_a_chain(model: nn.Module) -> bool:
    """Whether each pair's output reaches the next pair through ReLU, pooling, flattening and dropout alone.

    Only then does scaling one pair up and the next one down leave the network's function alone.

    Raises:
        ValueError: as ``homogeneous_pairs``.
    """
    modules, nodes = _find_pairs(model)
    return all(_reaches(second, first, modules) for (_, second), (first, _) in itertools.pairwise(nodes))


def _find_pairs(model: nn.Module) -> tuple[dict[str, nn.Module], list[tuple[fx.Node, fx.Node]]]:
    """The model's modules by name and the graph nodes of its pairs."""
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception as error:
        raise ValueError(f"cannot see through {type(model).__name__}.forward to find its pairs: {error}") from error
    modules = dict(model.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    pairs: list[tuple[fx.Node, fx.Node]] = []
    taken: set[int] = set()
    for node in graph.nodes:
        first = _layer(node, modules)
        if first is None or calls[node.target] > 1 or id(first) in taken:
            continue
        second_node = _layer_behind_relu(node, modules)
        if second_node is None:
            continue
        second = modules[second_node.target]
        same_kind = type(first) is type(second)
        if same_kind and calls[second_node.target] == 1 and id(second) not in taken:
            pairs.append((node, second_node))
            taken |= {id(first), id(second)}
    return modules, pairs


def _reaches(node: fx.Node, goal: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether ``node`` is read by ``goal`` alone, through operations that scaling commutes with."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node is goal:
            return True
        if not any(_is(kind, node, modules) for kind in (_RELU, _IDENTITY, _SCALING)):
            return False
    return False


def _layer(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    if node.op != "call_module":
        return None
    module = modules[node.target]
    if not isinstance(module, _LAYERS) or getattr(module, "groups", 1) != 1:
        return None
    return module


def _layer_behind_relu(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """The layer node that alone reads ``node`` through exactly one ReLU, or None."""
    relus = 0
    while len(node.users) == 1:
        node = next(iter(node.users))
        if _layer(node, modules) is not None:
            return node if relus == 1 else None
        if _is(_RELU, node, modules):
            relus += 1
        elif not _is(_IDENTITY, node, modules):
            return None
    return None


def _is(kind: _Kind, node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[node.target], kind.modules)
    if node.op == "call_function":
        return node.target in kind.functions
    return node.op == "call_method" and node.target in kind.methods


def input_norms(layer: nn.Module) -> Tensor:
    """L2 norm of every unit's input weights: rows of ``layer.weight`` (out, in, ...) -> shape (out,)."""
    return row_norms(layer.weight.detach())


def output_norms(layer: nn.Module) -> Tensor:
    """L2 norm of every unit's output weights: columns of ``layer.weight`` (out, in, ...) -> shape (in,)."""
    return column_norms(layer.weight.detach())


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
