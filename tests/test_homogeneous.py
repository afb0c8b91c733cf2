"""Which pairs and weights are found, and what is refused."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from wdlab.homogeneous import homogeneous_pairs, normalized_weights, pairs_form_a_chain, unit_path_norms, weights
from wdlab.models import MLP, VGG, FactorizedMLP, ResNet


def linears(model):
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("model", [MLP, FactorizedMLP])
def test_an_mlp_of_six_layers_has_three_disjoint_pairs_in_forward_order(model):
    network = model((1, 2, 2), classes=3, width=5, depth=6)
    layers = linears(network)
    assert homogeneous_pairs(network) == [(layers[0], layers[1]), (layers[2], layers[3]), (layers[4], layers[5])]


def test_an_odd_layer_is_left_over():
    network = MLP((1, 2, 2), classes=3, width=5, depth=5)
    layers = linears(network)
    assert homogeneous_pairs(network) == [(layers[0], layers[1]), (layers[2], layers[3])]


def test_convolutions_pair_but_not_across_pooling_or_into_linear():
    conv = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3)]
    network = nn.Sequential(
        *(conv[0], nn.ReLU(), conv[1], nn.ReLU(), nn.MaxPool2d(2)),
        *(conv[2], nn.ReLU(), conv[3], nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)),
    )
    assert homogeneous_pairs(network) == [(conv[0], conv[1]), (conv[2], conv[3])]


class Residual(nn.Module):
    """The hidden layer has a second reader, so scaling it would change the function."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        hidden = torch.relu(self.a(x))
        return self.b(hidden) + hidden


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(nn.functional.relu(self.a(x)))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else x


def test_a_hidden_layer_that_is_read_twice_is_no_pair():
    assert homogeneous_pairs(Residual()) == []


def test_a_functional_relu_counts_and_other_activations_do_not():
    network = Functional()
    assert homogeneous_pairs(network) == [(network.a, network.b)]
    assert homogeneous_pairs(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))) == []
    assert homogeneous_pairs(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))) == []


def test_a_layer_used_twice_is_no_pair():
    shared = nn.Linear(4, 4)
    assert homogeneous_pairs(nn.Sequential(shared, nn.ReLU(), shared)) == []


def test_a_model_that_cannot_be_traced_says_where_and_what_to_do():
    with pytest.raises(ValueError, match="cannot see through Branching") as caught:
        homogeneous_pairs(Branching())
    message = str(caught.value)
    assert "test_homogeneous.py, line" in message and "if x.sum() > 0" in message
    assert "control flow" in message and "pass the pairs of layers yourself" in message


def test_the_line_said_is_that_of_the_submodule():
    with pytest.raises(ValueError, match=r"cannot see through Sequential.*if x\.sum\(\) > 0"):
        homogeneous_pairs(nn.Sequential(nn.Linear(4, 4), Branching()))


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        left, right = torch.relu(self.a(x)), torch.relu(self.b(x))
        return torch.relu(self.c(left)), torch.relu(self.d(right))


def test_parallel_branches_have_a_pair_each():
    network = Parallel()
    assert homogeneous_pairs(network) == [(network.a, network.c), (network.b, network.d)]


def vgg(plan, head, width=1):
    """Convolutions of the plan's channels with ReLU, "M" for max pooling; then ``head``. With its convolutions."""
    layers, channels = [], 3
    for step in plan:
        if step == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, step * width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = step * width
    network = nn.Sequential(*layers, *head, nn.Flatten(), nn.Linear(channels, 10))
    return network, [layer for layer in layers if isinstance(layer, nn.Conv2d)]


VGG19 = [1, 1, "M", 2, 2, "M", *[4] * 4, "M", *[8] * 4, "M", *[8] * 4]


@pytest.mark.parametrize("head", [(nn.AvgPool2d(2),), (nn.AdaptiveAvgPool2d(1),), (nn.MaxPool2d(2), nn.Dropout())])
@pytest.mark.parametrize("across", [False, True])
def test_vgg19_has_eight_pairs_and_its_linear_layer_is_in_none(head, across):
    network, convolutions = vgg(VGG19, head)
    assert homogeneous_pairs(network, across) == list(zip(convolutions[::2], convolutions[1::2], strict=True))
    assert pairs_form_a_chain(network)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AdaptiveMaxPool2d(4), nn.Dropout2d()])
def test_pairs_reach_across_pooling_only_where_asked(pool):
    first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
    network = nn.Sequential(first, nn.ReLU(), pool, nn.Identity(), second)
    assert homogeneous_pairs(network) == []
    assert homogeneous_pairs(network, across_pooling=True) == [(first, second)]
    assert homogeneous_pairs(nn.Sequential(first, pool, second), across_pooling=True) == []


def test_a_linear_layer_pairs_with_a_convolution_of_which_one_position_is_left():
    first, linear = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)
    network = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    assert homogeneous_pairs(network, across_pooling=True) == [(first, linear)]
    for positions, layers in {
        "several": (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)),
        "rows, as nothing is flattened": (nn.AdaptiveAvgPool2d(4), nn.Linear(4, 2)),
        "flattened with the batch": (nn.AdaptiveAvgPool2d(1), nn.Flatten(0), nn.Linear(4, 2)),
    }.items():
        assert homogeneous_pairs(nn.Sequential(first, nn.ReLU(), *layers), across_pooling=True) == [], positions


def test_pooling_of_what_a_linear_layer_puts_out_mixes_its_units():
    network = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Linear(4, 4))
    assert homogeneous_pairs(network, across_pooling=True) == []


class Spelled(nn.Module):
    """Two convolutions and a linear layer, joined as a test spells it."""

    def __init__(self, between, before_linear):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 1), nn.Linear(5, 2)
        self.between, self.before_linear = between, before_linear

    def forward(self, x):
        hidden = torch.relu(self.b(self.between(self.a(x))))
        return self.c(self.before_linear(functional.adaptive_avg_pool2d(hidden, 1)))


def flat(x):
    return torch.flatten(x, 1)


@pytest.mark.parametrize(
    "between",
    [
        lambda x: functional.relu(x, inplace=True),
        lambda x: x.relu_(),
        lambda x: torch.relu_(x),
        lambda x: functional.leaky_relu(x, 0.2),
        lambda x: functional.dropout(functional.relu(x), 0.1),
        lambda x: functional.max_pool2d(torch.relu(x), 2, 1),
        lambda x: functional.avg_pool2d(x.relu(), 2),
        lambda x: functional.adaptive_avg_pool2d(x, 3).relu(),
        lambda x: functional.adaptive_max_pool2d(x, (2, 2)).relu(),
    ],
)
def test_functional_spellings_count(between):
    network = Spelled(between, flat)
    assert network(torch.ones(2, 1, 6, 6)).shape == (2, 2)
    assert homogeneous_pairs(network, across_pooling=True) == [(network.a, network.b)]


@pytest.mark.parametrize(
    "flatten",
    [
        flat,
        lambda x: x.flatten(1),
        lambda x: x.flatten(start_dim=1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.view((x.shape[0], -1)),
        lambda x: x.reshape(x.size()[0], -1),
        lambda x: torch.reshape(x, (x.size(0), -1)),
    ],
)
def test_spellings_of_flatten_count(flatten):
    network = Spelled(functional.gelu, flatten)
    assert homogeneous_pairs(network, across_pooling=True) == [(network.b, network.c)]


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: x.view(-1, 5),
        lambda x: x.view(2, -1),
        lambda x: x.reshape(x.size(0), 5),
        lambda x: x.view(x.size(0) * 1, -1),
        lambda x: x.flatten(2).view(x.size(0), -1),
        lambda x: torch.flatten(x),
        lambda x: x.squeeze(),
    ],
)
def test_other_reshapings_are_not_seen_through(flatten):
    assert homogeneous_pairs(Spelled(functional.gelu, flatten), across_pooling=True) == []


class Regrouped(nn.Module):
    """Frames that are folded into the batch and back: a column of the linear layer is one of a frame."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 4, 4), nn.Linear(4, 2)

    def forward(self, x):
        frames = x.flatten(0, 1)
        return self.linear(torch.relu(self.conv(frames)).view(x.size(0), -1))


def test_the_batch_size_of_before_a_regrouping_is_another():
    assert homogeneous_pairs(Regrouped(), across_pooling=True) == []


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.1), nn.PReLU(), nn.PReLU(4)])
def test_activations_that_scaling_commutes_with(activation):
    network = nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2))
    assert homogeneous_pairs(network) == [(network[0], network[2])]


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.GELU(), nn.Hardtanh(), nn.SiLU(), nn.Tanh()])
def test_activations_that_scaling_does_not_commute_with(activation):
    assert homogeneous_pairs(nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2)), across_pooling=True) == []


@pytest.mark.parametrize("across", [False, True])
def test_batch_norm_and_residual_joins_leave_no_pair(across):
    with torch.device("meta"):
        assert homogeneous_pairs(torchvision.models.resnet18(), across) == []


def test_torchvisions_vgg11_and_alexnet():
    with torch.device("meta"):
        vgg11, alexnet = torchvision.models.vgg11(), torchvision.models.alexnet()
    (a, b, *rest), head = [m for m in vgg11.features if isinstance(m, nn.Conv2d)], linears(vgg11)
    near = list(zip(rest[::2], rest[1::2], strict=True))
    assert homogeneous_pairs(vgg11) == near  # dropout is between the linear layers
    assert homogeneous_pairs(vgg11, across_pooling=True) == [(a, b), *near, (head[0], head[1])]
    (a, b, c, d, _), head = [m for m in alexnet.features if isinstance(m, nn.Conv2d)], linears(alexnet)
    assert homogeneous_pairs(alexnet) == [(c, d), (head[1], head[2])]
    assert homogeneous_pairs(alexnet, across_pooling=True) == [(a, b), (c, d), (head[0], head[1])]


def test_layers_whose_weights_are_not_their_own_alone_are_no_pair():
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    tied[4].weight = tied[0].weight
    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 4))
    masked = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    prune.identity(masked[2], "bias")
    for network in (tied, normed, masked):
        assert homogeneous_pairs(network) == []


class ReadsTheWeight(Functional):
    def forward(self, x):
        return super().forward(x) + self.a.weight.sum()


def test_a_layer_whose_weight_is_read_elsewhere_is_no_pair():
    assert homogeneous_pairs(ReadsTheWeight()) == []


def test_grouped_convolutions_are_no_pair():
    assert homogeneous_pairs(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2))) == []


def test_scaling_units_across_pooling_does_not_change_the_function(float64):
    torch.manual_seed(0)
    network = Spelled(lambda x: functional.avg_pool2d(functional.leaky_relu(x), 3, 1, 1), flat)
    (first, second), *rest = homogeneous_pairs(network, across_pooling=True)
    inputs, c = torch.randn(3, 1, 6, 6), torch.rand(4) + 0.5
    before = network(inputs)
    first.weight.data.mul_(c[:, None, None, None])
    first.bias.data.mul_(c)
    second.weight.data.div_(c[:, None, None])
    assert rest == [] and torch.allclose(network(inputs), before, rtol=1e-12, atol=1e-12)


def test_scaling_units_changes_neither_function_nor_paths(float64):
    torch.manual_seed(0)
    network = MLP((1, 4, 4), classes=3, width=6, depth=4)
    pairs, inputs = homogeneous_pairs(network), torch.randn(8, 1, 4, 4)
    before, paths = network(inputs), torch.cat(unit_path_norms(pairs))
    for first, second in pairs:
        c = torch.rand(6) + 0.5
        first.weight.data.mul_(c[:, None])
        first.bias.data.mul_(c)
        second.weight.data.div_(c)
    assert torch.allclose(network(inputs), before, rtol=1e-12, atol=1e-12)
    assert torch.allclose(torch.cat(unit_path_norms(pairs)), paths, rtol=1e-12)


def test_weights_are_those_of_layers_and_never_biases_or_norms():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3), nn.LayerNorm(3))
    assert weights(network) == [network[0].weight, network[3].weight]


def test_a_shared_weight_counts_once():
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    network[1].weight = network[0].weight
    assert weights(network) == [network[0].weight]


def test_attention_decays_its_projections():
    whole, parts = nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True)
    assert weights(whole) == [whole.in_proj_weight, whole.out_proj.weight]
    projections = [parts.q_proj_weight, parts.k_proj_weight, parts.v_proj_weight]
    assert weights(parts) == [*projections, parts.out_proj.weight]
    assert len(weights(nn.TransformerEncoderLayer(4, 2, 8))) == 4


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


def test_parameters_of_unknown_modules_are_never_decided_silently():
    with pytest.raises(ValueError, match=r"cannot tell whether 1\.scale \(Custom\) is to be decayed"):
        weights(nn.Sequential(nn.Linear(3, 3), Custom()))
    with pytest.raises(ValueError, match="has no linear, convolution or embedding weight"):
        weights(nn.ReLU())


def test_normalized_weights_are_those_that_a_batch_norm_follows():
    for model in (
        MLP((1, 4, 4), 3, width=5, depth=4, norm="batch"),
        ResNet((3, 8, 8), 10, 4, 8),
        VGG((3, 32, 32), 10, 4, 11, batch_norm=True),
    ):
        assert normalized_weights(model) == weights(model)[:-1]  # all but that of the last layer
    assert normalized_weights(MLP((1, 4, 4), 3, width=5, depth=4)) == []


def test_a_layer_that_is_read_beside_its_norm_is_not_normalized():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False)

        def forward(self, x):
            hidden = self.first(x)
            return self.norm(self.second(self.norm(hidden) + hidden))

    model = Beside()
    assert normalized_weights(model) == [model.second.weight]
