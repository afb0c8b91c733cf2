"""The parts of a network that weight decay acts on: the decayed weights, and the pairs of homogeneous layers.

A *homogeneous unit* is a ReLU neuron (or channel) with input weights ``w`` (a row of the first layer) and output
weights ``v`` (a column of the second). Scaling ``w`` by c > 0 and ``v`` by 1/c does not change the network's function,
so only the product ``|w| |v|`` matters. Its sum over units is the path-norm (P1, arXiv 2210.03069).

For the regularizers, the metrics, and users who need lists of parameters for an optimizer.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from wdlab.tracing import DROPOUT, IDENTITY, POOLING, RELU, RESHAPE, LayerLink, OperationKind, TracedModel

Pair = tuple[nn.Module, nn.Module]
_WEIGHT_OWNERS = (nn.Linear, nn.Bilinear, nn.Embedding, nn.modules.conv._ConvNd)
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_ATTENTION_BIASES = ("in_proj_bias", "bias_k", "bias_v")
_NORM = OperationKind((nn.modules.batchnorm._NormBase,))
_NOT_DECAYED = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.PReLU,
)


def weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters to be decayed, chosen by the type of the module that owns them.

    The ``weight`` of every linear, convolution and embedding layer and the input projections of
    ``nn.MultiheadAttention`` are decayed. Biases and all parameters of normalization layers and of PReLU are not. A
    shared weight is returned once.

    Raises:
        ValueError: if these rules do not cover a parameter (then pass an explicit list to the regularizer), or if the
            model has no weight to decay.
    """
    chosen: dict[int, nn.Parameter] = {}  # by id
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            decayed = _is_decayed(module, name)
            if decayed is None:
                raise ValueError(
                    f"cannot tell whether {path or 'the model'}.{name} ({type(module).__name__}) is to be decayed: "
                    "pass the list of parameters yourself"
                )
            if decayed:
                chosen.setdefault(id(parameter), parameter)
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no linear, convolution or embedding weight to decay")
    return list(chosen.values())


def _is_decayed(module: nn.Module, name: str) -> bool | None:
    """Return True if the module's own parameter ``name`` is to be decayed, False if not, None if no rule covers it."""
    if isinstance(module, _WEIGHT_OWNERS) and name in ("weight", "bias"):
        return name == "weight"
    if isinstance(module, nn.MultiheadAttention) and name in (*_ATTENTION_WEIGHTS, *_ATTENTION_BIASES):
        return name in _ATTENTION_WEIGHTS
    return False if isinstance(module, _NOT_DECAYED) else None


def normalized_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of the linear and convolution layers that a batch or instance norm follows directly.

    They are scale-invariant: the network's function does not change if such a weight is multiplied by c > 0 (up to the
    epsilon of the norm, and with the statistics of the batch). Layers whose output is used elsewhere too are left out,
    and so are grouped convolutions and layers whose weight is shared or made by a parametrization.

    Raises:
        ValueError: if ``torch.fx`` cannot trace the model's forward.
    """
    traced = TracedModel(model, instead="pass the list of weights yourself")
    layers = [(traced.layer(node), traced.only_reader(node)) for node in traced.graph.nodes]
    return [layer.weight for layer, reader in layers if layer and reader and traced.is_a(_NORM, reader)]


def if_traceable(find: Callable[[nn.Module], list[Any]], model: nn.Module) -> list[Any]:
    """Return ``find(model)``, [] if it raises the ValueError of a model that ``torch.fx`` cannot trace."""
    try:
        return find(model)
    except ValueError:
        return []


def homogeneous_pairs(model: nn.Module, across_pooling: bool = False) -> list[Pair]:
    """Find the disjoint (input layer, output layer) pairs of homogeneous units, in forward order.

    A pair is Linear -> ReLU -> Linear or Conv2d -> ReLU -> Conv2d (LeakyReLU and PReLU count as ReLU; groups must be
    1). Nothing else may lie between the two layers, and no other operation may use a value computed between them.
    Pairs are chosen greedily, starting at the input, as the authors of P1 do: layers 1-2, 3-4, 5-6 of an MLP. Layers
    whose weights are shared, or made by a parametrization such as weight norm, are in no pair.

    Args:
        model: a network in whose tensors the first dimension is the batch.
        across_pooling: True allows max and average pooling, dropout and flattening between the layers too, as long as
            exactly one input of the second layer depends on each unit of the first: Conv2d -> ReLU -> pooling ->
            Conv2d, and Conv2d -> ReLU -> global pooling -> flatten -> Linear.

    Returns:
        A list of ``(first, second)`` modules. Row ``i`` of ``first.weight`` and column ``i`` of ``second.weight``
        belong to unit ``i``. Empty if the model has no such pair.

    Raises:
        ValueError: if ``torch.fx`` cannot trace the model's forward (data-dependent control flow).
    """
    traced = _trace_for_pairs(model)
    return [(traced.layer(link.first), traced.layer(link.second)) for link in _pair_links(traced, across_pooling)]


def pairs_form_a_chain(model: nn.Module, across_pooling: bool = False) -> bool:
    """Return True if each pair's output reaches the next pair through ReLU, pooling, flattening and dropout only.

    If not, scaling one pair up and the next one down changes the network's function. With fewer than two pairs the
    result is True.

    Args:
        model: as in ``homogeneous_pairs``.
        across_pooling: as in ``homogeneous_pairs``, which finds the pairs.

    Raises:
        ValueError: if ``torch.fx`` cannot trace the model's forward.
    """
    traced = _trace_for_pairs(model)
    links = _pair_links(traced, across_pooling)
    return all(_reaches(traced, one.second, following.first) for one, following in itertools.pairwise(links))


def _trace_for_pairs(model: nn.Module) -> TracedModel:
    return TracedModel(model, instead="pass the pairs of layers yourself")


def _pair_links(traced: TracedModel, across_pooling: bool) -> list[LayerLink]:
    """Return the disjoint pairs of ``homogeneous_pairs`` as links in the traced graph (see ``tracing.LayerLink``)."""
    kinds = (RELU, IDENTITY, DROPOUT, POOLING) if across_pooling else (RELU, IDENTITY)

    def passes(node: fx.Node) -> bool:
        return any(traced.is_a(kind, node) for kind in kinds) or (across_pooling and traced.flattens(node))

    links: list[LayerLink] = []
    taken: set[fx.Node] = set()
    for node in traced.graph.nodes:
        link = None if node in taken else traced.link_from(node, passes)
        if link is None or traced.columns_per_unit(link) != 1:
            continue
        if sum(traced.is_a(RELU, between) for between in link.between) == 1:
            links.append(link)
            taken.add(link.second)
    return links


def _reaches(traced: TracedModel, node: fx.Node, goal: fx.Node) -> bool:
    """Return True if ``node``'s values are used for ``goal`` only, through operations that commute with scaling."""
    current = traced.only_reader(node)
    while current is not None and current is not goal:
        if not any(traced.is_a(kind, current) for kind in (RELU, IDENTITY, DROPOUT, POOLING, RESHAPE)):
            return False
        current = traced.only_reader(current)
    return current is goal


def input_norms(layer: nn.Module) -> Tensor:
    """Return the L2 norm, shape (out,), of every unit's input weights: the rows of ``layer.weight`` (out, in, ...)."""
    return row_norms(layer.weight.detach())


def output_norms(layer: nn.Module) -> Tensor:
    """Return the L2 norm, shape (in,), of every unit's output weights: the columns of ``layer.weight``."""
    return column_norms(layer.weight.detach())


def row_norms(weight: Tensor, stacked: bool = False) -> Tensor:
    """Return the L2 norm of each row ``weight[i]``, computed in at least float32: shape (rows,).

    Args:
        weight: shape (rows, columns, ...); for a stack of runs (runs, rows, columns).
        stacked: True for a stack of runs, whose result has the shape (runs, rows).
    """
    return torch.linalg.vector_norm(weight.flatten(1 + stacked), dim=-1, dtype=_norm_dtype(weight))


def column_norms(weight: Tensor, stacked: bool = False) -> Tensor:
    """Return the L2 norm of each column ``weight[:, j]``, computed in at least float32: shape (columns,).

    A sum of squares takes a sixth of the time of ``vector_norm``, which is slow across rows.

    Args:
        weight: shape (rows, columns, ...); for a stack of runs (runs, rows, columns).
        stacked: True for a stack of runs, whose result has the shape (runs, columns).
    """
    other = [d for d in range(weight.dim()) if d not in ((0, 2) if stacked else (1,))]
    return weight.to(_norm_dtype(weight)).square().sum(other).sqrt()


def unit_path_norms(
    pairs: Iterable[Pair], tensor: Callable[[Tensor], Tensor] = lambda weight: weight, stacked: bool = False
) -> list[Tensor]:
    """Return ``|w| |v|`` of every unit, in one tensor (units,) per pair; its sum is the pair's path-norm.

    Args:
        pairs: the pairs of layers.
        tensor: function from a layer's weight to the tensor to use in its place.
        stacked: True if these tensors have the runs of a stack as their first dimension, as the results have then.
    """
    layers = ((tensor(first.weight).detach(), tensor(second.weight).detach()) for first, second in pairs)
    return [row_norms(first, stacked) * column_norms(second, stacked) for first, second in layers]


def _norm_dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
