"""A step that only makes an optimizer fill its state, as torch.distributed.checkpoint takes one, is no update."""

import copy

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from tests.problem import same
from tests.regularizers.methods import METHODS, made, network
from tests.regularizers.test_copies import train
from wdlab.optimizers import SGDS, AdamS, PAdam
from wdlab.regularizers import L2, Early

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "tensor lr": (torch.optim.Adam, {"lr": torch.tensor(0.01)}),
    "adams": (AdamS, {}),
    "sgds": (SGDS, {"momentum": 0.9}),
    "padam": (PAdam, {}),
}
NEED_ADAM = ("l2 first", "l2 second")
CASES = [(name, kind) for name in METHODS for kind in OPTIMIZERS if not (name in NEED_ADAM and "sgd" in kind)]
CASES = [case for case in CASES if case not in [(name, "momentum") for name in NEED_ADAM]]


def prepared(name, kind):
    torch.manual_seed(0)
    make, options = OPTIMIZERS[kind]
    model = network()
    optimizer = make(model.parameters(), **{"lr": 0.01} | options)
    method = made(name, model)
    method.attach(optimizer)
    return model, optimizer, method


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_template_moves_no_clock_no_weight_and_no_memory(name, kind):
    model, optimizer, method = prepared(name, kind)
    before = network()
    before.load_state_dict(model.state_dict())
    fresh = method.state_dict()
    get_optimizer_state_dict(model, optimizer)
    assert same(model, before)
    assert str(method.state_dict()) == str(fresh) and method.updates == 0


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_what_is_loaded_into_a_template_goes_on_exactly(name, kind):
    model, optimizer, method = prepared(name, kind)
    train(model, optimizer)
    state, of_method = copy.deepcopy((get_optimizer_state_dict(model, optimizer), method.state_dict()))
    resumed, other, its_method = prepared(name, kind)
    get_optimizer_state_dict(resumed, other)
    resumed.load_state_dict(model.state_dict())
    set_optimizer_state_dict(resumed, other, state)
    its_method.load_state_dict(of_method)
    for m, o in ((model, optimizer), (resumed, other)):
        train(m, o, seed=2)
    assert same(model, resumed)


def test_a_first_step_at_learning_rate_zero_is_an_update():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    method = L2.for_model(model, 0.1, over_time=Early(steps=2))
    method.attach(optimizer)
    train(model, optimizer)
    assert method.updates == 3


def test_gradients_of_zero_at_a_learning_rate_are_an_update():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = L2.for_model(model, 0.1)
    method.attach(optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert method.updates == 1
