"""Bounds on the Lipschitz constant of a network from input to logits, in the L2 norm and in evaluation mode."""

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from wdlab.homogeneous import homogeneous_pairs, unit_path_norms
from wdlab.models.modes import evaluation
from wdlab.tracing import DROPOUT, IDENTITY, RELU, RESHAPE, OperationKind, TracedModel

F = nn.functional
ADD = OperationKind((), (operator.add, operator.iadd, torch.add), ("add", "add_"))
IN_PLACE_ADDS = (operator.iadd, "add_")
MAX_POOL = OperationKind((nn.MaxPool2d,), (F.max_pool2d,))
AVERAGE_POOL = OperationKind((nn.AvgPool2d,), (F.avg_pool2d,))
ADAPTIVE_MAX_POOL = OperationKind((nn.AdaptiveMaxPool2d,), (F.adaptive_max_pool2d,))
ADAPTIVE_AVERAGE_POOL = OperationKind((nn.AdaptiveAvgPool2d,), (F.adaptive_avg_pool2d,))
MEAN = OperationKind((), (torch.mean,), ("mean",))
ARGUMENT_NAMES = {  # names of the arguments that the functions of a kind have after the input, in their order
    RELU: ("negative_slope",),
    MAX_POOL: ("kernel_size", "stride", "padding", "dilation"),
    AVERAGE_POOL: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}


def lower_bound(model: nn.Module, inputs: Tensor) -> float:
    """Return a lower bound on the Lipschitz constant: the largest spectral norm of a Jacobian, over a batch.

    The Jacobian of the logits by the input is computed in full for each example, with one backward pass per class.

    Args:
        model: a network on the device of ``inputs``.
        inputs: the batch, (b, ...).

    Returns:
        The bound, or nan if a Jacobian is not finite.
    """
    with evaluation(model), torch.enable_grad():
        inputs = inputs.detach().clone().requires_grad_()
        logits = model(inputs)
        sums = logits.flatten(1).sum(0)  # one backward pass for all examples, as they are independent
        rows = [torch.autograd.grad(total, inputs, retain_graph=True)[0] for total in sums]
    return spectral_norm(torch.stack(rows, dim=1).flatten(2))


def spectral_norm(matrices: Tensor) -> float:
    """Return the largest singular value of one matrix or of all of several, computed in float64.

    The result is nan if a matrix, or its square, is not finite.

    Args:
        matrices: (rows, columns) or (b, rows, columns).
    """
    matrices = matrices.detach().double()
    if matrices.shape[-2] > matrices.shape[-1]:
        matrices = matrices.mT
    squares = matrices @ matrices.mT
    if not torch.isfinite(squares).all():
        return math.nan
    return torch.linalg.eigvalsh(squares).max().clamp(min=0).sqrt().item()


def upper_bound(model: nn.Module, example: Tensor) -> float | None:
    """Return an upper bound on the Lipschitz constant, computed from bounds on the operations of the forward.

    The bounds of successive operations are multiplied; the bounds of values that are added are added. The bound of a
    linear layer is the spectral norm of its weight. The bound of a convolution is an upper bound on its spectral norm
    (see ``_convolution_bound``). The bound of a homogeneous pair (see ``wdlab.homogeneous``) is the product of its
    layers' bounds or a bound by its path-norm ``sum |w_i| |v_i|`` (P1), whichever is smaller.

    Args:
        model: a network on the device of ``example``.
        example: one input, (1, ...). Bounds of poolings depend on its size.

    Returns:
        The bound, or None if the model cannot be traced or has an operation whose bound is not implemented.
    """
    wrapped = nn.Sequential(model)  # else torch.fx would trace the inside of a model that is a single layer of torch
    with evaluation(model), torch.no_grad():
        try:
            traced, pairs = TracedModel(wrapped, instead="measure no upper bound"), homogeneous_pairs(wrapped)
        except ValueError:
            return None
        ShapeProp(fx.GraphModule(wrapped, traced.graph)).propagate(example)
        return _Bounds(traced, {id(second): first for first, second in pairs}).of_output()


class _Bounds:
    """Lipschitz bounds of the values in a traced model as functions of the input; None for a value without a bound.

    Args:
        traced: the model, whose graph holds the shapes of its values.
        first_of: first layer of each homogeneous pair, by the id of the pair's second layer.
    """

    def __init__(self, traced: TracedModel, first_of: Mapping[int, nn.Module]) -> None:
        self._traced, self._first_of = traced, first_of
        self._bounds: dict[fx.Node, float | None] = {}
        self._node_of = {id(traced.module(node)): node for node in traced.graph.nodes if node.op == "call_module"}

    def of_output(self) -> float | None:
        """Return the bound of the model's output, or None if it has none."""
        for node in self._traced.graph.nodes:
            self._bounds[node] = self._bound(node)
        return self._bounds[node]

    def _bound(self, node: fx.Node) -> float | None:
        """Return the bound of a node's value, or None. All earlier nodes' bounds must be in ``_bounds``."""
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
        bounds = [factor * source, self._path_norm_bound(node)]
        return min(bound for bound in bounds if bound is not None)

    def _operand(self, value: Any) -> float | None:
        """Return the bound of an operation's argument: a node's bound, 0 for a number, None for anything else."""
        if isinstance(value, int | float):
            return 0.0
        return self._bounds[value] if isinstance(value, fx.Node) else None

    def _sum(self, node: fx.Node) -> float | None:
        if node.target in IN_PLACE_ADDS and len(node.args[0].users) > 1:  # others may read the old or new value
            return None
        bounds = [self._operand(value) for value in node.args]
        broadcasts = any(isinstance(v, fx.Node) and _shape(v) not in (None, _shape(node)) for v in node.args)
        return None if None in bounds or node.kwargs or broadcasts else sum(bounds)

    def _path_norm_bound(self, node: fx.Node) -> float | None:
        """Return the bound by the path-norm if ``node`` calls the second layer of a homogeneous pair, else None."""
        second = self._traced.module(node)
        first = self._first_of.get(id(second))
        if first is None:
            return None
        steepest, between = 1.0, node.args[0]
        while between is not self._node_of[id(first)]:
            steepest, between = steepest * self._factor(between), between.args[0]
        source = self._operand(between.args[0])
        path = unit_path_norms([(first, second)])[0].double().sum().item()
        windows = math.prod(_windows_per_pixel_of(layer) for layer in (first, second))
        return None if source is None else source * steepest * path * math.sqrt(windows)

    def _factor(self, node: fx.Node) -> float | None:
        """Return the Lipschitz bound of an operation in its first argument, or None if none is implemented."""
        module, is_a = self._traced.module(node), self._traced.is_a
        if module is not None and (module._forward_hooks or module._forward_pre_hooks):
            return None
        if is_a(DROPOUT, node) and module is None and node.kwargs.get("training", True):
            return None  # the function, unlike the module, may be active in evaluation mode
        if any(is_a(kind, node) for kind in (IDENTITY, DROPOUT, RESHAPE)):
            return 1.0
        if is_a(RELU, node):
            return self._relu_bound(node)
        if isinstance(module, nn.Linear):
            return spectral_norm(module.weight)
        if isinstance(module, nn.Conv2d):
            return _convolution_bound(module)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            return _batch_norm_bound(module)
        return self._pooling_bound(node)

    def _pooling_bound(self, node: fx.Node) -> float | None:
        is_a = self._traced.is_a
        if is_a(MAX_POOL, node):
            return math.sqrt(_windows_per_pixel(**self._window(node, MAX_POOL)))
        if is_a(AVERAGE_POOL, node):
            return self._average_pool_bound(node)
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

    def _relu_bound(self, node: fx.Node) -> float:
        module = self._traced.module(node)
        if isinstance(module, nn.PReLU):
            return max(module.weight.abs().max().item(), 1.0)
        leaky = isinstance(module, nn.LeakyReLU) or node.target in (F.leaky_relu, F.leaky_relu_)
        return max(1.0, abs(self._options(node, RELU).get("negative_slope", 0.0))) if leaky else 1.0

    def _average_pool_bound(self, node: fx.Node) -> float | None:
        options = self._options(node, AVERAGE_POOL)
        if options.get("divisor_override") is not None:
            return None
        windows = _windows_per_pixel(**self._window(node, AVERAGE_POOL))
        full = options.get("count_include_pad", True) or _as_pair(options.get("padding", 0)) == (0, 0)
        if full and not options.get("ceil_mode", False):
            return math.sqrt(windows / math.prod(_as_pair(options["kernel_size"])))
        return math.sqrt(windows)  # at the border a window may average over a single pixel

    def _window(self, node: fx.Node, kind: OperationKind) -> dict[str, Any]:
        """Return a pooling's arguments for ``_windows_per_pixel``, by name."""
        options = self._options(node, kind)
        kernel, stride = options["kernel_size"], options.get("stride")
        return {
            "kernel": kernel,
            "stride": kernel if stride is None else stride,
            "dilation": options.get("dilation", 1),
        }

    def _options(self, node: fx.Node, kind: OperationKind) -> dict[str, Any]:
        """Return the ``ARGUMENT_NAMES`` of a node's operation by name, from the module or the function's arguments."""
        module = self._traced.module(node)
        if module is not None:
            return {name: getattr(module, name) for name in ARGUMENT_NAMES[kind] if hasattr(module, name)}
        return dict(zip(ARGUMENT_NAMES[kind], node.args[1:], strict=False)) | node.kwargs


def _convolution_bound(layer: nn.Conv2d) -> float | None:
    """Return an upper bound on the spectral norm of a convolution; None for a padding mode other than zeros.

    The bound is ``sqrt(m)`` times the spectral norm of the weight as a matrix (out, in * height * width), or the
    largest of these norms over the groups. The convolution applies this matrix to every patch, and a pixel lies in at
    most ``m`` patches.
    """
    if layer.padding_mode != "zeros":
        return None
    matrices = layer.weight.flatten(1).unflatten(0, (layer.groups, -1))
    return math.sqrt(_windows_per_pixel_of(layer)) * spectral_norm(matrices)


def _windows_per_pixel_of(layer: nn.Module) -> int:
    return _windows_per_pixel(layer.kernel_size, layer.stride, layer.dilation) if isinstance(layer, nn.Conv2d) else 1


def _windows_per_pixel(kernel: Any, stride: Any, dilation: Any) -> int:
    """Return the largest number of windows of a convolution or pooling that a pixel can lie in.

    In each window the pixel is at another offset. Stride and dilation restrict the offsets that can occur. Each
    argument is one number, or a pair for height and width.
    """
    sizes = zip(_as_pair(kernel), _as_pair(stride), _as_pair(dilation), strict=True)
    return math.prod(-(-k * math.gcd(s, d) // s) for k, s, d in sizes)


def _as_pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _batch_norm_bound(layer: nn.Module) -> float | None:
    if layer.running_var is None:  # normalized by the batch: no bound is implemented
        return None
    slopes = (layer.running_var.double() + layer.eps).rsqrt()
    return (slopes if layer.weight is None else slopes * layer.weight.double().abs()).max().item()


def _shape(node: Any) -> tuple[int, ...] | None:
    """Return the shape of a node's value, or None if the value is not a tensor."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(meta.shape) if isinstance(meta, TensorMetadata) else None


def _adaptive_windows(inputs: int, outputs: int) -> Tensor:
    """Return a matrix (outputs, inputs): 1 if an adaptive pooling's window of the output has the input, else 0."""
    windows = torch.zeros(outputs, inputs)
    for i in range(outputs):
        windows[i, i * inputs // outputs : -(-(i + 1) * inputs // outputs)] = 1
    return windows
