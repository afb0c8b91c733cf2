"""A pruned network computes what it did before, and is as much smaller as counting by hand says."""

import copy

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from tests.problem import problem, same, steps
from wdlab.footprint import footprint, footprints
from wdlab.homogeneous import homogeneous_pairs, unit_path_norms
from wdlab.models import MLP, FactorizedMLP
from wdlab.pruning import prune_dead_units, prune_small_units
from wdlab.regularizers import PathProx

pytestmark = pytest.mark.usefixtures("float64")


def silence(layer, *units, bias=None):
    """Make the input weights of units zero, and their biases too or what is given."""
    layer.weight.data[list(units)] = 0
    if layer.bias is not None and bias is not None:
        layer.bias.data[list(units)] = bias


def unread(layer, *columns):
    """Make the output weights of units zero."""
    layer.weight.data[:, list(columns)] = 0


def settled(model):
    """The model with biases, running statistics, scales and slopes of batch norm and PReLU that are not trivial."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.PReLU):
            for parameter in module.parameters():
                nn.init.normal_(parameter)
    return model


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def outputs(model, inputs):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(inputs)


def assert_same_function(pruned, model, inputs):
    before, after = outputs(model, inputs), outputs(pruned, inputs)
    assert (after - before).abs().max() <= 1e-12 * before.abs().max().clamp(min=1)


@pytest.mark.parametrize("model", [MLP, FactorizedMLP])
def test_an_mlp_loses_rows_biases_and_columns_and_keeps_its_function(model):
    torch.manual_seed(0)
    network = model((1, 2, 2), classes=3, width=5, depth=4)
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    silence(layers[0], 1)
    unread(layers[1], 3, 4)
    unread(layers[3], 0)
    pruned = prune_dead_units(network)
    assert_same_function(pruned, network, torch.randn(7, 1, 2, 2))
    small = [m for m in pruned.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in small] == [(4, 2), (2, 5), (5, 4), (4, 3)]
    assert parameters(pruned) == (4 * 2 + 2) + (2 * 5 + 5) + (5 * 4 + 4) + (4 * 3 + 3)


def test_an_mlp_with_batch_norm_loses_the_norms_of_dead_units_too():
    torch.manual_seed(0)
    network = MLP((1, 2, 2), classes=3, width=5, depth=3, norm="batch")
    network(torch.randn(20, 1, 2, 2))  # running statistics
    linear = [m for m in network.layers if isinstance(m, nn.Linear)]
    unread(linear[1], 3, 4)
    with torch.no_grad():
        linear[0].weight[0] = 0  # a constant behind the norm, which goes to the running mean of the next one
    pruned = prune_dead_units(network)
    assert [m.num_features for m in pruned.modules() if isinstance(m, nn.BatchNorm1d)] == [2, 5]
    assert_same_function(pruned, network, torch.randn(7, 1, 2, 2))


def test_of_a_factorized_mlp_units_without_relu_are_pruned_too():
    torch.manual_seed(0)
    network = FactorizedMLP((1, 2, 2), classes=3, width=5, depth=4)
    silence(network.layers[3], 2)
    pruned = prune_dead_units(network)
    assert pruned.layers[3].out_features == 4
    assert_same_function(pruned, network, torch.randn(7, 1, 2, 2))


def test_everything_alive_gives_an_equal_copy():
    network = MLP((1, 2, 2), classes=3, width=5, depth=4)
    pruned = prune_dead_units(network)
    assert pruned is not network and same(pruned, network)
    assert not {id(p) for p in pruned.parameters()} & {id(p) for p in network.parameters()}


def test_the_original_is_left_alone():
    network = MLP((1, 2, 2), classes=3, width=5, depth=4)
    unread(network.layers[3], 0)
    before = copy.deepcopy(network)
    prune_dead_units(network)
    assert same(network, before) and network.layers[1].out_features == 5


def test_tiny_weights_whose_norm_is_zero_are_not_dead():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).float()
    network[0].weight.data[0] = 1e-45
    network[2].weight.data[:, 1] = -1e-45
    network[2].weight.data[:, 2] = -0.0
    assert prune_dead_units(network)[0].out_features == 2


def conv_net(pool=None, padding=0):
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 5, 3, padding=padding, bias=False), nn.LeakyReLU(0.1), pool or nn.AvgPool2d(2), nn.Dropout()),
        *(nn.Flatten(), nn.Linear(5 * 4, 3)),
    )


def test_a_channel_takes_all_its_flattened_positions_with_it():
    torch.manual_seed(0)
    network, inputs = conv_net(padding=1), torch.randn(4, 2, 8, 8)
    unread(network[3], 2)
    unread(network[8], *range(4, 8))  # channel 1
    unread(network[8], *range(8, 11))  # not all of channel 2
    pruned = prune_dead_units(network)
    assert_same_function(pruned, network, inputs)
    assert (pruned[0].out_channels, pruned[3].in_channels, pruned[3].out_channels) == (3, 3, 4)
    assert pruned[8].in_features == 16
    assert parameters(pruned) == (3 * 2 * 9 + 3) + (4 * 3 * 9) + (16 * 3 + 3)


def test_constants_of_channels_go_through_pooling_and_flatten_into_the_bias():
    torch.manual_seed(0)
    network, inputs = conv_net(pool=nn.AdaptiveAvgPool2d(2)), torch.randn(4, 2, 12, 12)
    silence(network[0], 0, 3, bias=0.7)
    silence(network[0], 1, bias=-0.7)
    silence(network[3], 2)
    pruned = prune_dead_units(network)
    assert_same_function(pruned, network, inputs)
    assert (pruned[0].out_channels, pruned[3].out_channels, pruned[8].in_features) == (1, 4, 16)
    assert pruned[3].bias.shape == (4,)  # there was none; the constant 0.7 needs one


def test_a_bias_is_made_only_where_it_is_needed():
    network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))
    silence(network[0], 0, 1, bias=-1.0)
    unread(network[2], 3)
    assert prune_dead_units(network)[2].bias is None
    silence(network[0], 0, bias=1.0)
    network[2].weight.requires_grad_(False)
    pruned = prune_dead_units(network)
    assert torch.allclose(pruned[2].bias, network[2].weight[:, 0]) and not pruned[2].bias.requires_grad
    assert pruned[0].out_features == 1


@pytest.mark.parametrize(
    ("bias", "settings", "channels"),
    [
        (0.5, {"padding": 1}, 3),  # zeros along the borders differ from the constant
        (-0.5, {"padding": 1}, 2),  # behind the ReLU it is zero, as they are
        (0.5, {"padding": "same"}, 3),
        (0.5, {"padding": "valid"}, 2),
        (0.5, {}, 2),
        (0.5, {"padding": 1, "padding_mode": "reflect"}, 2),
        (0.5, {"padding": 1, "padding_mode": "circular"}, 2),
        (0.5, {"stride": 2, "dilation": 2}, 2),
    ],
)
def test_a_constant_channel_stays_where_zero_padding_would_show(bias, settings, channels):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, **settings))
    silence(network[0], 1, bias=bias)
    pruned = prune_dead_units(network)
    assert pruned[0].out_channels == channels
    assert_same_function(pruned, network, torch.randn(2, 1, 9, 9))


@pytest.mark.parametrize(
    ("pool", "channels"),
    [
        (nn.MaxPool2d(3, 2, 1), 2),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), 2),
        (nn.MaxPool2d(2, dilation=3, padding=1), 3),
        (nn.AvgPool2d(2), 2),
        (nn.AvgPool2d(2, ceil_mode=True), 2),
        (nn.AvgPool2d(3, 2, 1), 3),
        (nn.AvgPool2d(2, divisor_override=3), 3),
        (nn.AdaptiveAvgPool2d(3), 2),
        (nn.AdaptiveMaxPool2d(3), 2),
    ],
)
@pytest.mark.parametrize("spelled", ["module", "function"])
def test_a_constant_channel_stays_where_pooling_does_not_keep_it_constant(pool, channels, spelled):
    torch.manual_seed(0)
    functions = {
        nn.MaxPool2d: lambda x: functional.max_pool2d(
            x, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
        ),
        nn.AvgPool2d: lambda x: functional.avg_pool2d(
            x, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, True, pool.divisor_override
        ),
        nn.AdaptiveAvgPool2d: lambda x: functional.adaptive_avg_pool2d(x, 3),
        nn.AdaptiveMaxPool2d: lambda x: functional.adaptive_max_pool2d(x, 3),
    }
    between = pool if spelled == "module" else Calls(functions[type(pool)])
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), between, nn.Conv2d(3, 2, 2))
    silence(network[0], 2, bias=0.5)
    pruned = prune_dead_units(network)
    assert pruned[0].out_channels == channels
    assert_same_function(pruned, network, torch.randn(2, 1, 11, 11))


class Calls(nn.Module):
    """A function as a module that torch.fx looks into."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "activation",
    [
        *(nn.ReLU(inplace=True), nn.LeakyReLU(), nn.PReLU(), nn.PReLU(4), nn.GELU(), nn.SiLU(), nn.Tanh()),
        *(nn.Sigmoid(), nn.ReLU6(), nn.ELU(), nn.Softplus(), nn.Hardswish(), nn.BatchNorm1d(4), nn.Dropout()),
        *(nn.BatchNorm1d(4, affine=False), nn.Identity(), nn.Flatten(), Calls(lambda x: x.relu_())),
        *(Calls(functional.gelu), Calls(functional.silu), Calls(torch.tanh), Calls(lambda x: x.sigmoid())),
        *(Calls(lambda x: functional.elu(x, 0.5)), Calls(lambda x: functional.hardtanh(x, -0.2, 0.3))),
        *(Calls(functional.mish), Calls(functional.softplus), Calls(lambda x: functional.leaky_relu(x, 0.3))),
    ],
    ids=str,
)
def test_constants_go_through_whatever_acts_on_each_unit(activation):
    torch.manual_seed(0)
    network = settled(nn.Sequential(nn.Linear(3, 4), activation, nn.Dropout(), nn.Linear(4, 2))).double()
    silence(network[0], 1)
    unread(network[3], 0)
    pruned = prune_dead_units(network)
    assert (pruned[0].out_features, pruned[3].in_features) == (2, 2)
    assert_same_function(pruned, network, torch.randn(6, 3))


def test_dropout_that_is_always_active_makes_no_constant():
    network = nn.Sequential(nn.Linear(3, 4), Calls(functional.dropout), nn.Linear(4, 2))
    silence(network[0], 1, bias=1.0)
    silence(network[0], 2, bias=0.0)
    assert prune_dead_units(network)[0].out_features == 3


def test_batch_norm_by_the_batchs_statistics_makes_no_constant():
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    network = nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 2))
    silence(network[0], 1)
    unread(network[2], 3)
    pruned = prune_dead_units(network)
    assert pruned[0].out_features == pruned[1].num_features == 3
    assert_same_function(pruned, network, torch.randn(6, 3))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_vgg_loses_channels_with_their_batch_norm(batch_norm):
    torch.manual_seed(0)
    layers = torchvision.models.vgg.make_layers([4, "M", 6, 6, "M"], batch_norm=batch_norm)
    network = settled(nn.Sequential(layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5), nn.ReLU()))
    network.append(nn.Linear(5, 3))
    _, b, c = (m for m in layers if isinstance(m, nn.Conv2d))
    unread(b, 1, 2)
    silence(c, 0, 5)
    silence(network[3], 4)
    pruned = prune_dead_units(network)
    assert_same_function(pruned, network, torch.randn(2, 3, 8, 8))
    small = [m for m in pruned.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]
    norms = 2 * (2 + 6 + 4) if batch_norm else 0
    convolutions = (2 * 27 + 2) + (6 * 2 * 9 + 6) + (4 * 6 * 9 + 4)
    assert sum(p.numel() for m in small for p in m.parameters()) == parameters(pruned)
    assert parameters(pruned) == convolutions + norms + (4 * 4 * 4 + 4) + (4 * 3 + 3)
    if batch_norm:
        assert [m.num_features for m in small if isinstance(m, nn.BatchNorm2d)] == [2, 6, 4]


def test_batch_norm_between_flatten_and_linear_is_one_of_positions():
    network = settled(
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.PReLU(3), nn.Flatten(), nn.BatchNorm1d(12), nn.PReLU(12), nn.Linear(12, 2))
    )
    silence(network[0], 0)
    unread(network[5], 8, 9, 10, 11)
    pruned = prune_dead_units(network)
    assert (pruned[1].num_parameters, pruned[3].num_features, pruned[4].num_parameters) == (1, 4, 4)
    assert_same_function(pruned, network, torch.randn(3, 1, 4, 4))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        block = torchvision.models.resnet.BasicBlock
        self.stem, self.block = nn.Conv2d(1, 4, 3, padding=1), block(4, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.block(self.stem(x)).mean((2, 3)))


def test_of_a_residual_block_the_inner_channels_can_go_and_the_outer_stay():
    network = settled(Residual())
    block = network.block
    silence(network.stem, 0, bias=0)
    unread(block.conv1, 0)
    unread(network.fc, 1)
    silence(block.conv2, 2)
    unread(block.conv2, 1)
    silence(block.conv1, 0, 3)
    block.bn1.bias.data[:] = torch.tensor([-9.0, 0, 0, 9])  # a constant of 0 behind the ReLU, and one of more
    pruned = prune_dead_units(network)
    assert pruned.block.conv1.weight.shape == (2, 4, 3, 3) and pruned.block.conv2.weight.shape == (4, 2, 3, 3)
    assert pruned.stem.out_channels == pruned.fc.in_features == 4
    assert_same_function(pruned, network, torch.randn(2, 1, 6, 6))


def test_a_cascade_goes_on_until_nothing_changes():
    """The only reader of a unit dies, then its own only input's reader."""
    torch.manual_seed(0)
    network = MLP((1, 2, 2), classes=3, width=4, depth=4)
    _, second, third, last = (m for m in network.modules() if isinstance(m, nn.Linear))
    unread(last, 0)
    third.weight.data[1:, 0] = 0
    second.weight.data[1:, 0] = 0
    pruned = prune_dead_units(network)
    assert [m.out_features for m in pruned.modules() if isinstance(m, nn.Linear)] == [3, 3, 3, 3]
    assert_same_function(pruned, network, torch.randn(5, 1, 2, 2))


def test_constants_cascade_towards_the_output():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.SiLU())
    network.append(nn.Linear(3, 2))
    silence(network[0], 0)
    network[2].weight.data[1] = torch.tensor([1.0, 0, 0])
    network[4].weight.data[2] = torch.tensor([0, -2.0, 0])
    pruned = prune_dead_units(network)
    assert [layer.out_features for layer in pruned[::2]] == [2, 2, 2, 2]
    assert_same_function(pruned, network, torch.randn(5, 2))


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_of_a_layer_whose_units_are_all_dead_one_stays(side):
    network, inputs = conv_net(padding=1), torch.randn(2, 2, 8, 8)
    for layer in (network[0], network[3]) if side == "inputs" else (network[3], network[8]):
        nn.init.zeros_(layer.weight)
    pruned = prune_dead_units(network)
    assert (pruned[0].out_channels, pruned[3].out_channels) == (1, 1)
    assert_same_function(pruned, network, inputs)


def test_a_network_of_zeros_keeps_one_unit_per_layer():
    mlp = MLP((1, 2, 2), classes=3, width=4, depth=4)
    for weight in mlp.parameters():
        nn.init.zeros_(weight)
    assert [m.out_features for m in prune_dead_units(mlp).modules() if isinstance(m, nn.Linear)] == [1, 1, 1, 3]


class Views(nn.Module):
    def __init__(self, flatten):
        super().__init__()
        self.a, self.b, self.flatten = nn.Conv2d(1, 3, 3), nn.Linear(3 * 4, 2), flatten

    def forward(self, x):
        return self.b(self.flatten(functional.max_pool2d(functional.relu(self.a(x)), 2)))


@pytest.mark.parametrize(
    ("flatten", "channels"),
    [
        (lambda x: x.view(x.size(0), -1), 2),
        (lambda x: x.reshape(x.shape[0], -1), 2),
        (lambda x: x.flatten(1), 2),
        (lambda x: x.view(-1, 12), 3),
        (lambda x: x.permute(0, 2, 3, 1).flatten(1), 3),
    ],
)
def test_flattening_is_seen_through_unless_its_size_is_a_number(flatten, channels):
    network = Views(flatten)
    nn.init.zeros_(network.a.weight[1].data)
    pruned = prune_dead_units(network)
    assert pruned.a.out_channels == channels
    assert_same_function(pruned, network, torch.randn(3, 1, 6, 6))


class ReadTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x):
        hidden = torch.relu(self.a(x))
        return self.b(hidden) + self.c(hidden)


def stack(*between, first=None, second=None):
    return nn.Sequential(first or nn.Conv2d(4, 4, 1), *between, second or nn.Conv2d(4, 4, 1))


def hooked(layer):
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    return layer


@torch.no_grad()  # torch copies no result of a computation with gradients
def masked(layer):
    return prune.identity(layer, "bias")


SHARED = nn.Linear(3, 3)
LEFT_ALONE = {
    "two readers": ReadTwice(),
    "a shared layer": nn.Sequential(SHARED, nn.ReLU(), SHARED, nn.ReLU(), SHARED),
    "a grouped convolution": stack(nn.ReLU(), second=nn.Conv2d(4, 4, 1, groups=2)),
    "a grouped first convolution": stack(nn.ReLU(), first=nn.Conv2d(4, 4, 1, groups=2)),
    "weight norm": stack(nn.ReLU(), second=parametrizations.weight_norm(nn.Conv2d(4, 4, 1))),
    "a mask": stack(nn.ReLU(), first=masked(nn.Conv2d(4, 4, 1))),
    "normalization over channels": stack(nn.GroupNorm(1, 4)),
    "a linear layer along rows": stack(nn.ReLU(), second=nn.Linear(4, 4)),
    "softmax": stack(nn.Softmax(1)),
    "a hook": stack(hooked(nn.ReLU())),
    "a hook on a layer": stack(nn.ReLU(), second=hooked(nn.Conv2d(4, 4, 1))),
    "an activation with a given tensor": stack(Calls(lambda x: functional.leaky_relu(x) * torch.arange(4.0))),
    "one layer": nn.Linear(3, 3),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_not_understood_is_left_alone(name):
    network = copy.deepcopy(LEFT_ALONE[name]).double()
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data[:, 0] = 0
            parameter.data[1] = 0
    pruned = prune_dead_units(network)
    assert parameters(pruned) == parameters(network)


def test_a_prelu_or_batch_norm_that_serves_two_layers_keeps_them_as_they_are():
    shared = nn.PReLU(4)
    network = nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared, nn.Linear(4, 4))
    silence(network[0], 1)
    assert parameters(prune_dead_units(network)) == parameters(network)


def test_modes_gradients_types_and_memory_format_are_kept():
    network = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)))
    network = network.to(torch.bfloat16, memory_format=torch.channels_last)
    network[1].eval()
    network[0].weight.requires_grad_(False)
    unread(network[3], 0, 1)
    pruned = prune_dead_units(network)
    assert [m.training for m in pruned.modules()] == [m.training for m in network.modules()]
    assert [p.requires_grad for p in pruned.parameters()] == [p.requires_grad for p in network.parameters()]
    assert {t.dtype for t in pruned.parameters()} == {torch.bfloat16}
    for layer, inputs, outs in ((pruned[0], 3, 2), (pruned[3], 2, 2)):
        assert layer.weight.shape == (outs, inputs, 3, 3)
        assert layer.weight.is_contiguous(memory_format=torch.channels_last) and not layer.weight.is_contiguous()
    assert pruned[1].num_batches_tracked.dtype == torch.long


def test_a_pruned_network_trains_and_its_state_loads_into_another():
    network = settled(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3, bias=False)))
    silence(network[0], 0, bias=1.0)
    unread(network[3], 2)
    pruned, other = prune_dead_units(network), prune_dead_units(network)
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1, momentum=0.9)
    steps(pruned, optimizer, torch.randn(8, 4), torch.randint(3, (8,)), count=2)
    assert not same(pruned, other) and all(p.grad is not None for p in pruned.parameters())
    other.load_state_dict(pruned.state_dict())
    assert_same_function(other, pruned, torch.randn(5, 4))


@pytest.mark.parametrize(("network", "strength"), [("mlp", 0.7), ("convolutions", 1.0)])
def test_units_that_pathprox_kills_are_pruned(network, strength):
    model, inputs, labels = problem(dtype=torch.float64)
    if network == "convolutions":
        model = nn.Sequential(nn.Conv2d(1, 8, 2), nn.ReLU(), nn.Conv2d(8, 8, 2), nn.Flatten(), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = PathProx.for_model(model, strength)
    method.attach(optimizer)
    steps(model, optimizer, inputs, labels, count=6)
    dead = [int((path == 0).sum()) for path in unit_path_norms(method.pairs)]
    assert all(0 < count < 8 for count in dead)
    pruned = prune_dead_units(model)
    assert [8 - len(path) for path in unit_path_norms(homogeneous_pairs(pruned))] == dead
    assert_same_function(pruned, model, inputs)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_model_that_cannot_be_traced_says_so():
    with pytest.raises(ValueError, match=r"cannot see through Sequential.*submodules that can be traced"):
        prune_dead_units(nn.Sequential(nn.Linear(2, 2), Branching()))


def test_a_footprint_counts_parameters_bytes_and_time():
    network = settled(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 4)))
    network[1].eval()
    network.append(network[3])  # shared: it counts once
    before, modes = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    found = footprint(network, torch.randn(5, 3), repeats=3)
    assert found.parameters == 3 * 4 + 4 + 8 + 4 * 4 + 4
    assert found.bytes == 8 * (found.parameters + 4 + 4 + 1) and 0 < found.latency_ms < 1000
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match="repeats=0"):
        footprint(network, torch.randn(5, 3), repeats=0)


def test_a_pruned_network_has_a_smaller_footprint():
    network = MLP((1, 2, 2), classes=3, width=8, depth=3)
    unread(network.layers[3], *range(6))
    small, large = footprints([prune_dead_units(network), network], torch.randn(4, 1, 2, 2), repeats=1)
    assert small.parameters == large.parameters - 6 * (4 + 1 + 8) and small.bytes < large.bytes


def any_network(data):
    """A small network of random parts, and inputs of its shape."""
    activation = st.sampled_from([nn.ReLU, nn.GELU, nn.Sigmoid, nn.LeakyReLU, nn.PReLU])
    if data.draw(st.booleans(), label="linear"):
        layers = [nn.Linear(3, 4), data.draw(activation)(), nn.BatchNorm1d(4), nn.Linear(4, 3, bias=False)]
        return nn.Sequential(*layers, data.draw(activation)(), nn.Linear(3, 2)), torch.randn(3, 3)
    pools = st.sampled_from([nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(4)])
    bias, padding = data.draw(st.booleans()), data.draw(st.sampled_from([0, 1]))
    network = nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1, bias=bias), nn.BatchNorm2d(3), data.draw(activation)(), data.draw(pools)),
        *(nn.Conv2d(3, 4, 3, padding=padding), data.draw(activation)(), nn.AdaptiveMaxPool2d(2), nn.Flatten()),
        nn.Linear(16, 2),
    )
    return network, torch.randn(2, 1, 8, 8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_whatever_rows_and_columns_are_zero_the_function_is_the_same(data, seed):
    torch.manual_seed(seed)
    network, inputs = any_network(data)
    settled(network).double()
    inputs = inputs.double()
    for layer in network:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            rows = data.draw(st.lists(st.integers(0, layer.weight.shape[0] - 1), max_size=3))
            columns = data.draw(st.lists(st.integers(0, layer.weight.shape[1] - 1), max_size=20))
            silence(layer, *rows, bias=data.draw(st.sampled_from([None, 0.0, 0.5, -0.5])))
            unread(layer, *columns)
    pruned = prune_dead_units(network)
    assert parameters(pruned) <= parameters(network) + 3  # a bias may have been made
    assert_same_function(pruned, network, inputs)
    assert parameters(prune_dead_units(pruned)) == parameters(pruned)


def test_small_units_are_removed_and_the_largest_of_a_pair_stays():
    network = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
    network[0].weight.data = torch.tensor([[1.0], [2.0], [4.0], [0.5]])
    network[2].weight.data = torch.tensor([[1.0, 2.0, 10.0, 0.0]])  # paths 1, 4, 40, 0
    widths = [prune_small_units(network, share)[0].out_features for share in (0, 0.025, 0.03, 0.1, 0.11, 1)]
    assert widths == [3, 3, 2, 2, 1, 1]
    inputs = torch.randn(7, 1)
    assert_same_function(prune_small_units(network, 0), network, inputs)
    network[2].weight.data[:, :2] = 0
    assert_same_function(prune_small_units(network, 0.11), network, inputs)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=f"share={share}: must be between 0 and 1"):
        prune_small_units(MLP((1, 2, 2), classes=3, width=5, depth=4), share)
