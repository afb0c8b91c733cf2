"""Between which bounds the Lipschitz constant of a network lies, logits by input in the L2 norm, in evaluation mode."""

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from wdlab.homogeneous import homogeneous_pairs, unit_paths
from wdlab.models.modes import evaluation
from wdlab.tracing import DROPOUT, IDENTITY, RELU, RESHAPE, Kind, TracedModel

F = nn.functional
ADD = Kind((), (operator.add, operator.iadd, torch.add), ("add", "add_"))
IN_PLACE = (operator.iadd, "add_")
MAX_POOL = Kind((nn.MaxPool2d,), (F.max_pool2d,))
AVERAGE_POOL = Kind((nn.AvgPool2d,), (F.avg_pool2d,))
ADAPTIVE_MAX_POOL = Kind((nn.AdaptiveMaxPool2d,), (F.adaptive_max_pool2d,))
ADAPTIVE_AVERAGE_POOL = Kind((nn.AdaptiveAvgPool2d,), (F.adaptive_avg_pool2d,))
MEAN = Kind((), (torch.mean,), ("mean",))
OPTIONS = {  # of the functions, by position
    RELU: ("negative_slope",),
    MAX_POOL: ("kernel_size", "stride", "padding", "dilation"),
    AVERAGE_POOL: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}


def lower_bound(model: nn.Module, inputs: Tensor) -> float:
    """The largest spectral norm of the Jacobian of the logits by the input, over ``inputs`` (b, ...).

    The Jacobians are computed whole, one backward pass per class. nan if one is not finite.
    """
    with evaluation(model), torch.enable_grad():
        inputs = inputs.detach().clone().requires_grad_()
        logits = model(inputs)
        sums = logits.flatten(1).sum(0)  # an example's logits depend on that example alone
        rows = [torch.autograd.grad(total, inputs, retain_graph=True)[0] for total in sums]
    return spectral_norm(torch.stack(rows, dim=1).flatten(2))


def spectral_norm(matrices: Tensor) -> float:
    """The largest singular value of a matrix, or of several (b, rows, columns), in float64; nan if not finite."""
    matrices = matrices.detach().double()
    if matrices.shape[-2] > matrices.shape[-1]:
        matrices = matrices.mT
    squares = matrices @ matrices.mT
    if not torch.isfinite(squares).all():
        return math.nan
    return torch.linalg.eigvalsh(squares).max().clamp(min=0).sqrt().item()


def upper_bound(model: nn.Module, example: Tensor) -> float | None:
    """An upper bound on the Lipschitz constant, the product and sum of bounds along the graph of the forward.

    Linear layers have their spectral norm, convolutions a bound on it (see ``_convolution``), a homogeneous pair the
    smaller one of the product of both and of its path-norm ``sum |w_i| |v_i|`` (P1).

    Args:
        model: on the device of ``example``.
        example: one input, (1, ...); for the sizes of what is pooled.

    Returns:
        None if the model cannot be traced, or does something of which no bound is known here.
    """
    inside = nn.Sequential(model)  # a model may be a single layer of torch, which is not traced but called
    with evaluation(model), torch.no_grad():
        try:
            traced, pairs = TracedModel(inside, instead="measure no upper bound"), homogeneous_pairs(inside)
        except ValueError:
            return None
        ShapeProp(fx.GraphModule(inside, traced.graph)).propagate(example)
        return _Bounds(traced, {id(second): first for first, second in pairs}).of_output()


class _Bounds:
    """Of every value in a traced model, how fast it can change with the input; None where that is not known."""

    def __init__(self, traced: TracedModel, first_of: Mapping[int, nn.Module]) -> None:
        self._traced, self._first_of = traced, first_of
        self._bounds: dict[fx.Node, float | None] = {}
        self._node_of = {id(traced.module(node)): node for node in traced.graph.nodes if node.op == "call_module"}

    def of_output(self) -> float | None:
        for node in self._traced.graph.nodes:
            self._bounds[node] = self._bound(node)
        return self._bounds[node]

    def _bound(self, node: fx.Node) -> float | None:
        if node.op == "placeholder":
            return 1.0
        if node.op == "get_attr":
            return 0.0  # a constant
        if node.op == "output":
            return self._operand(node.args[0])
        if self._traced.is_a(ADD, node):
            return self._sum(node)
        factor, source = self._factor(node), self._operand(node.args[0] if node.args else None)
        if factor is None or source is None:
            return None
        bounds = [factor * source, self._by_path(node)]
        return min(bound for bound in bounds if bound is not None)

    def _operand(self, value: Any) -> float | None:
        if isinstance(value, int | float):
            return 0.0
        return self._bounds[value] if isinstance(value, fx.Node) else None

    def _sum(self, node: fx.Node) -> float | None:
        if node.target in IN_PLACE and len(node.args[0].users) > 1:  # who reads it, before or behind the addition?
            return None
        bounds = [self._operand(value) for value in node.args]
        spread = any(isinstance(v, fx.Node) and _shape(v) not in (None, _shape(node)) for v in node.args)
        return None if None in bounds or node.kwargs or spread else sum(bounds)

    def _by_path(self, node: fx.Node) -> float | None:
        """The bound by the path-norm behind the second layer of a homogeneous pair."""
        second = self._traced.module(node)
        first = self._first_of.get(id(second))
        if first is None:
            return None
        steepest, between = 1.0, node.args[0]
        while between is not self._node_of[id(first)]:
            steepest, between = steepest * self._factor(between), between.args[0]
        source = self._operand(between.args[0])
        path = unit_paths([(first, second)])[0].double().sum().item()
        reads = math.prod(_reads_of_layer(layer) for layer in (first, second))
        return None if source is None else source * steepest * path * math.sqrt(reads)

    def _factor(self, node: fx.Node) -> float | None:
        """How much an operation on one value can enlarge a difference."""
        module, is_a = self._traced.module(node), self._traced.is_a
        if module is not None and (module._forward_hooks or module._forward_pre_hooks):
            return None
        if is_a(DROPOUT, node) and module is None and node.kwargs.get("training", True):
            return None  # as a function it may be active in evaluation mode too
        if any(is_a(kind, node) for kind in (IDENTITY, DROPOUT, RESHAPE)):
            return 1.0
        if is_a(RELU, node):
            return self._relu(node)
        if isinstance(module, nn.Linear):
            return spectral_norm(module.weight)
        if isinstance(module, nn.Conv2d):
            return _convolution(module)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            return _batch_norm(module)
        return self._pooling(node)

    def _pooling(self, node: fx.Node) -> float | None:
        is_a = self._traced.is_a
        if is_a(MAX_POOL, node):
            return math.sqrt(_reads(**self._window(node, MAX_POOL)))
        if is_a(AVERAGE_POOL, node):
            return self._average_pool(node)
        sizes = [_shape(value) for value in (node.args[0] if node.args else None, node)]
        if None in sizes:
            return None
        if is_a(MEAN, node):
            return math.sqrt(math.prod(sizes[1]) / math.prod(sizes[0]))
        windows = [_adaptive_windows(n, m) for n, m in zip(*(size[-2:] for size in sizes), strict=True)]
        if is_a(ADAPTIVE_AVERAGE_POOL, node):
            return math.prod(spectral_norm(window / window.sum(1, keepdim=True)) for window in windows)
        if is_a(ADAPTIVE_MAX_POOL, node):
            return math.sqrt(math.prod(window.sum(0).max().item() for window in windows))
        return None

    def _relu(self, node: fx.Node) -> float:
        module = self._traced.module(node)
        if isinstance(module, nn.PReLU):
            return max(module.weight.abs().max().item(), 1.0)
        leaky = isinstance(module, nn.LeakyReLU) or node.target in (F.leaky_relu, F.leaky_relu_)
        return max(1.0, abs(self._options(node, RELU).get("negative_slope", 0.0))) if leaky else 1.0

    def _average_pool(self, node: fx.Node) -> float | None:
        options = self._options(node, AVERAGE_POOL)
        if options.get("divisor_override") is not None:
            return None
        reads = _reads(**self._window(node, AVERAGE_POOL))
        full = options.get("count_include_pad", True) or _both(options.get("padding", 0)) == (0, 0)
        if full and not options.get("ceil_mode", False):
            return math.sqrt(reads / math.prod(_both(options["kernel_size"])))
        return math.sqrt(reads)  # at the border a window may hold a single pixel

    def _window(self, node: fx.Node, kind: Kind) -> dict[str, Any]:
        options = self._options(node, kind)
        kernel, stride = options["kernel_size"], options.get("stride")
        return {
            "kernel": kernel,
            "stride": kernel if stride is None else stride,
            "dilation": options.get("dilation", 1),
        }

    def _options(self, node: fx.Node, kind: Kind) -> dict[str, Any]:
        module = self._traced.module(node)
        if module is not None:
            return {name: getattr(module, name) for name in OPTIONS[kind] if hasattr(module, name)}
        return dict(zip(OPTIONS[kind], node.args[1:], strict=False)) | node.kwargs


def _convolution(layer: nn.Conv2d) -> float | None:
    """``sqrt(m)`` times the spectral norm of the (out, in * height * width) matrix, the largest of all groups.

    The convolution is that matrix on every patch, and a pixel lies in at most ``m`` patches.
    """
    if layer.padding_mode != "zeros":
        return None
    matrices = layer.weight.flatten(1).unflatten(0, (layer.groups, -1))
    return math.sqrt(_reads_of_layer(layer)) * spectral_norm(matrices)


def _reads_of_layer(layer: nn.Module) -> int:
    return _reads(layer.kernel_size, layer.stride, layer.dilation) if isinstance(layer, nn.Conv2d) else 1


def _reads(kernel: Any, stride: Any, dilation: Any) -> int:
    """In how many windows a pixel can lie: those of its offsets in a window that stride and dilation can reach."""
    sizes = zip(_both(kernel), _both(stride), _both(dilation), strict=True)
    return math.prod(-(-k * math.gcd(s, d) // s) for k, s, d in sizes)


def _both(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _batch_norm(layer: nn.Module) -> float | None:
    if layer.running_var is None:  # normalizes by the batch
        return None
    slopes = (layer.running_var.double() + layer.eps).rsqrt()
    return (slopes if layer.weight is None else slopes * layer.weight.double().abs()).max().item()


def _shape(node: Any) -> tuple[int, ...] | None:
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(meta.shape) if isinstance(meta, TensorMetadata) else None


def _adaptive_windows(inputs: int, outputs: int) -> Tensor:
    """Which inputs lie in the window of which output of an adaptive pooling: zeros and ones, (outputs, inputs)."""
    windows = torch.zeros(outputs, inputs)
    for i in range(outputs):
        windows[i, i * inputs // outputs : -(-(i + 1) * inputs // outputs)] = 1
    return windows
