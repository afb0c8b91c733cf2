"""Which parts of a network a weight decay acts on: the decayed weights, and the pairs of homogeneous layers.

A *homogeneous unit* is a ReLU neuron (or channel) with input weights ``w`` (a row of the first layer) and output
weights ``v`` (a column of the second). Scaling ``w`` by c > 0 and ``v`` by 1/c does not change the network, so what
matters is the product ``|w| |v|``; its sum over units is the path-norm (P1, arXiv 2210.03069).

Used by the regularizers, the metrics, pruning, and anyone who needs parameter lists for their own optimizer.
"""

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from wdlab.tracing import DROPOUT, IDENTITY, POOLING, RELU, RESHAPE, Link, TracedModel

Pair = tuple[nn.Module, nn.Module]
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
