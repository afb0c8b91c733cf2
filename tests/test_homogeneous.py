"""Which pairs and weights are found, and what is refused."""

import pytest
import torch
from torch import nn

from wdlab.homogeneous import homogeneous_pairs, unit_paths, weights
from wdlab.models import MLP, FactorizedMLP


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


def test_a_model_that_cannot_be_traced_says_so():
    with pytest.raises(ValueError, match="cannot see through Branching"):
        homogeneous_pairs(Branching())


def test_scaling_units_changes_neither_function_nor_paths(float64):
    torch.manual_seed(0)
    network = MLP((1, 4, 4), classes=3, width=6, depth=4)
    pairs, inputs = homogeneous_pairs(network), torch.randn(8, 1, 4, 4)
    before, paths = network(inputs), torch.cat(unit_paths(pairs))
    for first, second in pairs:
        c = torch.rand(6) + 0.5
        first.weight.data.mul_(c[:, None])
        first.bias.data.mul_(c)
        second.weight.data.div_(c)
    assert torch.allclose(network(inputs), before, rtol=1e-12, atol=1e-12)
    assert torch.allclose(torch.cat(unit_paths(pairs)), paths, rtol=1e-12)


def test_weights_are_those_of_layers_and_never_biases_or_norms():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3), nn.LayerNorm(3))
    assert weights(network) == [network[0].weight, network[3].weight]


def test_a_shared_weight_counts_once():
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    network[1].weight = network[0].weight
    assert weights(network) == [network[0].weight]


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


def test_parameters_of_unknown_modules_are_never_decided_silently():
    with pytest.raises(ValueError, match=r"cannot tell whether 1\.scale \(Custom\) is to be decayed"):
        weights(nn.Sequential(nn.Linear(3, 3), Custom()))
    with pytest.raises(ValueError, match="has no linear, convolution or embedding weight"):
        weights(nn.ReLU())
