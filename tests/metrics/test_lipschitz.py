"""Bounds on Lipschitz constants: closed forms, and that the upper one is above the lower one."""

import math

import pytest
import torch
from torch import nn

from wdlab.metrics import lipschitz
from wdlab.models import MLP, VGG, FactorizedMLP, ResNet

F = nn.functional


def bounds(model, inputs):
    return lipschitz.lower_bound(model, inputs), lipschitz.upper_bound(model, inputs[:1])


@pytest.mark.parametrize("shape", [(3, 7), (7, 3)])
def test_a_linear_layer_has_its_spectral_norm(shape):
    torch.manual_seed(0)
    model = nn.Linear(*shape)
    exact = torch.linalg.matrix_norm(model.weight, 2).item()
    assert bounds(model, torch.randn(2, shape[0])) == pytest.approx((exact, exact), rel=1e-5)


def test_a_pair_has_the_smaller_of_two_bounds():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[10.0, 0.0], [0.0, 1.0]])
    model[2].weight.data = torch.tensor([[0.1, 3.0]])
    assert lipschitz.upper_bound(model, torch.zeros(1, 2)) == pytest.approx(1.0 + 3.0)  # not 10 * 3.0017
    model[0].weight.data = torch.eye(2)
    assert lipschitz.upper_bound(model, torch.zeros(1, 2)) == pytest.approx(math.hypot(0.1, 3.0))  # not 3.1


class Residual(nn.Module):
    def __init__(self, add):
        super().__init__()
        self.layer, self.add = nn.Linear(4, 4), add

    def forward(self, inputs):
        return self.add(self.layer(inputs), inputs)


def in_place(one, other):
    one += other
    return one


@pytest.mark.parametrize("add", [torch.add, in_place, lambda a, b: a + b, lambda a, b: a.add(b)])
def test_the_bound_of_a_sum_is_the_sum_of_the_bounds(add):
    model = Residual(add)
    expected = torch.linalg.matrix_norm(model.layer.weight, 2).item() + 1
    assert lipschitz.upper_bound(model, torch.zeros(1, 4)) == pytest.approx(expected, rel=1e-6)


def mean(images):
    return images.mean((2, 3))


class Operation(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def forward(self, images):
        return self.operation(images)


SINGLE = {  # an operation on 6 x 6 pixels, and its bound
    "flatten": (nn.Flatten(), 1.0),
    "relu": (lambda x: F.relu(x) + 1, 1.0),
    "leaky": (nn.LeakyReLU(-2.0), 2.0),
    "leaky function": (lambda x: F.leaky_relu(x, 3.0), 3.0),
    "max pool": (nn.MaxPool2d(2), 1.0),
    "overlapping max pool": (nn.MaxPool2d(3, 2, padding=1), 2.0),
    "max pool function": (lambda x: F.max_pool2d(x, 3, stride=1), 3.0),
    "average pool": (nn.AvgPool2d(2), 0.5),
    "overlapping average pool": (nn.AvgPool2d(3, 2), 2 / 3),
    "average pool function": (lambda x: F.avg_pool2d(x, (2, 3)), 1 / math.sqrt(6)),
    "average pool at the border": (nn.AvgPool2d(2, padding=1, count_include_pad=False), 1.0),
    "global average": (nn.AdaptiveAvgPool2d(1), 1 / 6),
    "adaptive average": (lambda x: F.adaptive_avg_pool2d(x, 3), 1 / 2),
    "adaptive average, enlarging": (nn.AdaptiveAvgPool2d(12), 2.0),
    "adaptive maximum": (nn.AdaptiveMaxPool2d(1), 1.0),
    "mean": (mean, 1 / 6),
    "dropout": (lambda x: F.dropout(nn.functional.relu(x), 0.5, False), 1.0),
    "view": (lambda x: x.view(x.size(0), -1), 1.0),
    "layer norm": (nn.LayerNorm(6), None),
    "product": (lambda x: x * x, None),
    "batch norm by the batch": (nn.BatchNorm2d(2, track_running_stats=False), None),
    "circular convolution": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), None),
}


@pytest.mark.parametrize("name", SINGLE)
def test_bounds_of_single_operations(name):
    torch.manual_seed(0)
    operation, expected = SINGLE[name]
    model, images = Operation(operation), torch.randn(3, 2, 6, 6)
    lower, upper = bounds(model, images)
    assert upper == (None if expected is None else pytest.approx(expected, rel=1e-6))
    assert upper is None or lower <= upper * (1 + 1e-6)


def test_a_batch_norm_has_its_steepest_channel():
    model = nn.BatchNorm2d(2, eps=1e-12)  # torch 2.11 takes no zero
    model.running_var.copy_(torch.tensor([4.0, 0.25]))
    model.weight.data = torch.tensor([-6.0, 1.0])
    assert bounds(model, torch.randn(2, 2, 3, 3)) == pytest.approx((3.0, 3.0))


CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 3, "stride": 3},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": (2, 3), "stride": (2, 1), "padding": "valid"},
    {"kernel_size": 3, "dilation": 2, "stride": 2, "padding": 2},
    {"kernel_size": 3, "dilation": 2, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "groups": 2},
]


@pytest.mark.parametrize("settings", CONVOLUTIONS)
@pytest.mark.parametrize("constant", [False, True])  # equal weights make the bound nearly tight
def test_the_bound_of_a_convolution_is_above_its_norm(settings, constant):
    torch.manual_seed(0)
    model = nn.Conv2d(2, 4, **settings)
    if constant:
        nn.init.ones_(model.weight)
    lower, upper = bounds(model, torch.randn(1, 2, 7, 7))
    assert lower <= upper * (1 + 1e-6) and upper < 4 * lower


def test_a_convolution_that_does_not_overlap_is_exact():
    torch.manual_seed(0)
    lower, upper = bounds(nn.Conv2d(2, 4, 2, stride=2), torch.randn(1, 2, 6, 6))
    assert lower == pytest.approx(upper, rel=1e-5)


def trained_long_ago(model):
    """With statistics and scales of batch norm that are not those of the start."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 2.0)
            nn.init.normal_(module.weight)
    return model


NETWORKS = {
    "mlp": lambda: MLP((3, 16, 16), 5, 8, 4),
    "factorized": lambda: FactorizedMLP((3, 16, 16), 5, 8, 4),
    "vgg": lambda: VGG((3, 16, 16), 5, 8, 11),
    "vgg with batch norm": lambda: VGG((3, 16, 16), 5, 8, 11, batch_norm=True),
    "resnet": lambda: ResNet((3, 16, 16), 5, 2, 8),
    "conv pair": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.PReLU(4, init=2.0), nn.Conv2d(4, 2, 3, stride=2), nn.Flatten()
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_the_constant_lies_between_the_bounds(name, seed):
    torch.manual_seed(seed)
    model = trained_long_ago(NETWORKS[name]()).train()
    lower, upper = bounds(model, 3 * torch.randn(6, 3, 16, 16))
    assert 0 < lower <= upper < math.inf


def test_no_upper_bound_of_what_cannot_be_seen_through():
    class Branching(nn.Module):
        def forward(self, inputs):
            return inputs if inputs.sum() > 0 else -inputs

    assert lipschitz.upper_bound(Branching(), torch.ones(1, 2)) is None


def test_a_network_that_has_diverged_has_no_bounds():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    nn.init.constant_(model[0].weight, math.nan)
    assert all(math.isnan(bound) for bound in bounds(model, torch.ones(2, 2)))


class Broadcasting(nn.Module):
    def forward(self, x):
        return (x + x.mean((2, 3), keepdim=True)).flatten(1)


class ActiveDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return nn.functional.dropout(self.layer(x), 0.5)


def test_no_bound_is_told_where_none_is_known():
    assert lipschitz.upper_bound(Broadcasting(), torch.randn(1, 2, 8, 8)) is None
    assert lipschitz.upper_bound(ActiveDropout(), torch.randn(1, 3)) is None
    hooked = nn.Sequential(nn.Linear(3, 3))
    assert lipschitz.upper_bound(hooked, torch.randn(1, 3)) is not None
    hooked[0].register_forward_hook(lambda module, inputs, output: 10 * output)
    assert lipschitz.upper_bound(hooked, torch.randn(1, 3)) is None
