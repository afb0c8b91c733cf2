"""Removal of dead and small units from a network. The module also exports the measurements of ``wdlab.footprint``.

For users of the sparsity that structured weight decay (PathProx, P1) produces.
"""

import copy

import torch
from torch import Tensor, fx, nn

from wdlab.footprint import Footprint, footprint, footprints
from wdlab.homogeneous import homogeneous_pairs, unit_path_norms
from wdlab.models.modes import evaluation
from wdlab.tracing import DROPOUT, IDENTITY, POOLING, RELU, LayerLink, OperationKind, TracedModel

__all__ = ["Footprint", "footprint", "footprints", "prune_dead_units", "prune_small_units"]

_ACTIVATION = OperationKind(  # elementwise operations, in addition to tracing.RELU
    (
        *(nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
        *(nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign),
    ),
    (
        *(torch.tanh, torch.tanh_, torch.sigmoid, torch.sigmoid_, nn.functional.logsigmoid),
        *(nn.functional.relu6, nn.functional.hardtanh, nn.functional.hardswish, nn.functional.hardsigmoid),
        *(nn.functional.elu, nn.functional.selu, nn.functional.celu, nn.functional.gelu, nn.functional.silu),
        *(nn.functional.mish, nn.functional.softplus, nn.functional.softsign),
    ),
    ("tanh", "tanh_", "sigmoid", "sigmoid_"),
)
_BATCH_NORM = OperationKind((nn.BatchNorm1d, nn.BatchNorm2d))
_PER_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d, nn.PReLU)  # modules that may have a parameter or buffer per channel
_SIZE_ATTRIBUTES = {  # attributes with the number of rows and, if it has any, of columns of a module's weight
    nn.Linear: ("out_features", "in_features"),
    nn.Conv2d: ("out_channels", "in_channels"),
    nn.BatchNorm1d: ("num_features",),
    nn.BatchNorm2d: ("num_features",),
    nn.PReLU: ("num_parameters",),
}


def prune_dead_units(model: nn.Module) -> nn.Module:
    """Return a copy of the model without its dead units, which computes the same function in evaluation mode.

    A unit is a neuron or channel between two layers (Linear or Conv2d, groups 1). Batch norm, activations, dropout,
    pooling and flattening may lie between the layers; they act on each channel separately. A unit is dead, and is
    removed,

    * if its output weights ``v`` (its columns in the second layer) are all exactly zero; or
    * if its input weights ``w`` (its row in the first layer) are all exactly zero. Its output is then a constant c, and
      ``v c`` is added to the second layer's bias, which is created if there is none. Such a unit is kept if zero
      padding makes the second layer's input differ from c at the borders.

    Removal is repeated, since it can leave further units without input or output. Every layer keeps at least one unit.
    The following are not pruned: values that several operations use (residual connections), shared and parametrized
    layers, grouped convolutions, modules with forward hooks, and values that are flattened with hard-coded sizes.

    Args:
        model: a network in whose tensors the first dimension is the batch. Inputs of batch norm and of a PReLU with
            several parameters must be (batch, units) or (batch, channels, height, width). All values that the forward
            computes must be finite.

    Returns:
        A deep copy that keeps the modes (training or evaluation), dtypes and memory formats of the model.

    Raises:
        ValueError: if ``torch.fx`` cannot trace the model's forward.
    """
    pruned = copy.deepcopy(model)
    with evaluation(pruned), torch.no_grad():
        traced = TracedModel(pruned, instead="prune the submodules that can be traced one by one")
        links = [_PrunableLink(traced, link) for link in _prunable_links(traced)]
        while any([link.remove_dead_units() for link in links]):  # a list, so that every round prunes every link
            pass
    return pruned


def prune_small_units(model: nn.Module, share: float) -> nn.Module:
    """Return a copy of the model without dead units and without units that have small paths. Its outputs differ.

    The path of a unit is ``|w| |v|``, see :mod:`wdlab.homogeneous`. A path is small below ``share`` times the largest
    path of the same pair of layers. Of a unit with a small path the output weights ``v`` are set to zero, and then
    :func:`prune_dead_units` removes the unit. Units that are in no pair are removed only if they are dead.

    Args:
        model: as in :func:`prune_dead_units`.
        share: from 0 (dead units alone) to 1 (of every pair, only the units with the largest path are left).

    Raises:
        ValueError: for a share outside of [0, 1]; if ``torch.fx`` cannot trace the model's forward.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: must be between 0 and 1")
    smaller = copy.deepcopy(model)
    pairs = homogeneous_pairs(smaller)
    with torch.no_grad():
        for (_, second), paths in zip(pairs, unit_path_norms(pairs), strict=True):
            second.weight[:, paths < share * paths.max()] = 0
    return prune_dead_units(smaller)


def _prunable_links(traced: TracedModel) -> list[LayerLink]:
    """Return the links (see ``tracing.LayerLink``) whose units can be removed without changing any other layer."""
    links = [traced.link_from(node, lambda between: _acts_per_channel(traced, between)) for node in traced.graph.nodes]
    return [link for link in links if link is not None and _is_prunable(traced, link)]


def _acts_per_channel(traced: TracedModel, node: fx.Node) -> bool:
    """Return True if a node flattens, or acts on each channel separately and reads a single other node."""
    if traced.flattens(node):
        return True
    kinds = (RELU, _ACTIVATION, _BATCH_NORM, IDENTITY, DROPOUT, POOLING)
    return len(node.all_input_nodes) == 1 and any(traced.is_a(kind, node) for kind in kinds)


def _is_prunable(traced: TracedModel, link: LayerLink) -> bool:
    """Return True if the link's columns match its units, no module has hooks, and all between pass ``_can_shrink``."""
    modules = [traced.module(node) for node in (link.first, *link.between, link.second)]
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules if module is not None):
        return False
    count = traced.columns_per_unit(link)
    if count == 0:
        return False
    first = traced.layer(link.first)
    units, flat = first.weight.shape[0], isinstance(first, nn.Linear)
    for node in link.between:
        flat = flat or traced.flattens(node)
        if not _can_shrink(traced, traced.module(node), units * count if flat else units, flat):
            return False
    return True


def _can_shrink(traced: TracedModel, module: nn.Module | None, width: int, flat: bool) -> bool:
    """Return True if a module between two layers can lose channels, or has no parameters or buffers per channel.

    Args:
        traced: the model that contains the module.
        module: the module, or None for an operation that is a function.
        width: number of channels of the module's input.
        flat: True if the input is (batch, channels), False if it is (batch, channels, height, width).
    """
    if not isinstance(module, _PER_CHANNEL) or (isinstance(module, nn.PReLU) and module.num_parameters == 1):
        return True
    fits = isinstance(module, nn.PReLU | (nn.BatchNorm1d if flat else nn.BatchNorm2d)) and _channels(module) == width
    # A parametrized module has a type of its own, which is not a key of _SIZE_ATTRIBUTES.
    plain = type(module) in _SIZE_ATTRIBUTES and traced.owns_its_weights(module)
    return fits and plain


class _PrunableLink:
    """Two layers and the operations between them, whose dead units can be removed in place."""

    def __init__(self, traced: TracedModel, link: LayerLink) -> None:
        self.traced, self.between = traced, link.between
        self.first, self.second = traced.layer(link.first), traced.layer(link.second)
        self.columns_per_unit = traced.columns_per_unit(link)

    def remove_dead_units(self) -> bool:
        """Remove the dead units, except for one if all are dead. Return True if any was removed."""
        constants = self._constants()
        unread = _all_zero(self.second.weight.transpose(0, 1))
        dead = (unread | self._can_be_folded(constants)).unflatten(0, (-1, self.columns_per_unit)).all(dim=1)
        if dead.all():
            dead[0] = False
        if not dead.any():
            return False
        self._fold(torch.where(self._columns_of(dead) & ~unread, constants, 0))
        self._keep(~dead)
        return True

    def _columns_of(self, units: Tensor) -> Tensor:
        """Return values per unit (units,) repeated for each column that multiplies the unit, as values (columns,)."""
        return units.repeat_interleave(self.columns_per_unit)

    def _constants(self) -> Tensor:
        """Return the constant that each column of the second layer multiplies, (columns,); nan if the value varies."""
        weight, bias = self.first.weight, self.first.bias
        outputs = weight.new_zeros(weight.shape[0]) if bias is None else bias
        # A constant map is represented by a single pixel.
        constants = torch.where(_all_zero(weight), outputs, torch.nan).reshape(1, -1, *[1] * (weight.dim() - 2))
        for node in self.between:
            if self.traced.flattens(node) and constants.dim() > 2:
                constants = self._columns_of(constants.flatten()).unsqueeze(0)
            else:
                constants = torch.where(constants.isnan(), constants, self._through(node, constants.clone()))
        return constants.flatten()

    def _through(self, node: fx.Node, constants: Tensor) -> Tensor:
        """Return a node's output for the input ``constants``, in the same shape; nan where the output varies."""
        traced, module = self.traced, self.traced.module(node)
        if traced.is_a(POOLING, node):
            return _pooled(_as_module(node) if module is None else module, constants)
        if traced.is_a(DROPOUT, node):  # the function, unlike the module, may be active in evaluation mode
            active = module is None and node.kwargs.get("training", True)
            return torch.where(constants == 0, constants, torch.nan) if active else constants
        if traced.is_a(_BATCH_NORM, node) and module.running_mean is None:  # it uses the batch's statistics
            return torch.full_like(constants, torch.nan)
        if traced.flattens(node):
            return constants
        if module is not None:
            return module(constants)
        function = getattr(Tensor, node.target) if node.op == "call_method" else node.target
        return function(constants, *node.args[1:], **node.kwargs)

    def _can_be_folded(self, constants: Tensor) -> Tensor:
        """Return a mask (columns,), True for constants whose effect can be added to the second layer's bias."""
        second = self.second
        if isinstance(second, nn.Linear) or second.padding_mode != "zeros" or second.padding in ("valid", (0, 0)):
            return constants.isfinite()
        return constants == 0

    def _fold(self, constants: Tensor) -> None:
        """Add the second layer's weight times ``constants`` (columns,) to its bias, computed on the CPU in float64.

        The weight of a convolution is summed over its kernel. A missing bias is created.
        """
        second, columns = self.second, constants != 0
        weight = second.weight[:, columns].to("cpu", torch.float64)
        shift = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
        shift = shift @ constants[columns].to("cpu", torch.float64)
        if not shift.any():
            return
        if second.bias is None:
            zeros = second.weight.new_zeros(second.weight.shape[0])
            second.bias = nn.Parameter(zeros, requires_grad=second.weight.requires_grad)
        second.bias.copy_(second.bias.to("cpu", torch.float64) + shift)

    def _keep(self, units: Tensor) -> None:
        """Remove the units that are False in the mask ``units`` (units,), in both layers and the modules between."""
        columns = self._columns_of(units)
        _select(self.first, 0, units)
        for module in map(self.traced.module, self.between):
            if isinstance(module, _PER_CHANNEL) and _channels(module) > 1:
                _select(module, 0, units if _channels(module) == len(units) else columns)
        _select(self.second, 1, columns)


def _all_zero(weight: Tensor) -> Tensor:
    """Return a mask (rows,) of the rows that are exactly zero. A norm is not used: for tiny rows it may be 0."""
    return (weight == 0).flatten(1).all(dim=1)


def _as_module(node: fx.Node) -> nn.Module | None:
    """Return the pooling module equivalent to a pooling function's node, or None if the pooling is adaptive."""
    if node.target is nn.functional.max_pool2d:
        return nn.MaxPool2d(*node.args[1:], **node.kwargs)
    return nn.AvgPool2d(*node.args[1:], **node.kwargs) if node.target is nn.functional.avg_pool2d else None


def _pooled(pooling: nn.Module | None, constants: Tensor) -> Tensor:
    """Return the output of a pooling for channels that are constant, in the same shape as ``constants``.

    The result is nan for a channel whose output may differ from the constant because of padding or
    ``divisor_override``.

    Args:
        pooling: the pooling module; None for an adaptive function, which has no padding.
        constants: the constant of each channel, (1, channels, 1, 1), or nan.
    """
    padded = getattr(pooling, "padding", 0) not in (0, (0, 0), [0, 0])
    if isinstance(pooling, nn.MaxPool2d):  # with dilation, a window at the border may contain nothing but padding
        return torch.full_like(constants, torch.nan) if padded and pooling.dilation not in (1, (1, 1)) else constants
    if isinstance(pooling, nn.AvgPool2d) and (padded or pooling.divisor_override is not None):
        return torch.where(constants == 0, constants, torch.nan)
    return constants


def _channels(module: nn.BatchNorm1d | nn.BatchNorm2d | nn.PReLU) -> int:
    return module.num_parameters if isinstance(module, nn.PReLU) else module.num_features


def _select(module: nn.Module, dim: int, kept: Tensor) -> None:
    """Keep only the rows (dim 0) or columns (dim 1) in the mask ``kept`` of a module's parameters and buffers."""
    index = kept.nonzero().flatten()
    for name in ("weight", "bias", "running_mean", "running_var"):
        old = getattr(module, name, None)
        if old is None or old.dim() <= dim:
            continue
        new = old.detach().index_select(dim, index).contiguous(memory_format=_memory_format(old))
        setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    setattr(module, _SIZE_ATTRIBUTES[type(module)][dim], len(index))


def _memory_format(tensor: Tensor) -> torch.memory_format:
    if tensor.is_contiguous() or tensor.dim() != 4:
        return torch.contiguous_format
    channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format
