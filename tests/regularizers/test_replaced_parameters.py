"""Parameters that are replaced where a method does not see it: said in one line before a step changes anything."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tests.problem import same
from tests.regularizers.methods import METHODS, STRENGTH, made, network
from wdlab.regularizers import L2, PathProx


def prepared(name="l2"):
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    method = made(name, model)
    handle = method.attach(optimizer)
    model(torch.randn(8, 6)).square().mean().backward()
    return model, optimizer, method, handle


@pytest.mark.parametrize("name", METHODS)
def test_replaced_in_the_optimizer(name):
    model, optimizer, _, _ = prepared(name)
    optimizer.step()
    before = copy.deepcopy(model)
    optimizer.param_groups[0]["params"][0] = nn.Parameter(torch.randn(5, 6))
    with pytest.raises(RuntimeError, match=r"0\.weight is not in the optimizer any more.*make a new"):
        optimizer.step()
    assert same(model, before)


@pytest.mark.parametrize("name", METHODS)
def test_replaced_in_the_model(name):
    model, optimizer, _, _ = prepared(name)
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    optimizer.add_param_group({"params": [model[0].weight]})
    with pytest.raises(RuntimeError, match=r"0\.weight is another parameter now.*make a new"):
        optimizer.step()


def test_what_the_error_says_to_do_works():
    model, optimizer, method, handle = prepared()
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    optimizer.param_groups[0]["params"][0] = model[0].weight
    with pytest.raises(RuntimeError, match=r"\(and 1 more\)"):
        optimizer.step()
    handle.remove()
    new = L2.for_model(model, STRENGTH)
    new.attach(optimizer)
    optimizer.step()
    assert (method.updates, new.updates) == (0, 1)


def test_a_method_of_strength_zero_does_not_mind():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    L2.for_model(model, 0.0).attach(optimizer)
    optimizer.param_groups[0]["params"][0] = nn.Parameter(torch.randn(5, 6))
    optimizer.step()


def test_without_a_model_the_shape_is_said():
    model = nn.Linear(6, 3)
    optimizer = torch.optim.Adam(model.parameters())
    L2(list(model.parameters()), 0.1).attach(optimizer)
    optimizer.param_groups[0]["params"][0] = nn.Parameter(torch.randn(3, 6))
    with pytest.raises(RuntimeError, match=r"one of shape \(3, 6\) is not in the optimizer"):
        optimizer.step()


def test_pairs_of_ones_own_are_held_against_their_layers():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    PathProx([(model[0], model[2])], 0.1).attach(optimizer)
    parametrize.register_parametrization(model[0], "weight", nn.Tanh())  # what is computed cannot be shrunk
    with pytest.raises(RuntimeError, match=r"the weight of a ParametrizedLinear is another parameter now"):
        optimizer.step()


def test_what_keeps_the_parameters_goes_on():
    model, optimizer, method, _ = prepared()
    model.load_state_dict(network().state_dict())
    model.to(torch.float64).to(torch.float32)
    model[0].weight.data = torch.ones(5, 6)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    optimizer.step()
    assert method.updates == 1
