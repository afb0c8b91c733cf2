"""A method that is copied or pickled with its model does to the copy what it does to the original."""

import copy
import pickle

import pytest
import torch

from tests.problem import same
from tests.regularizers.methods import METHODS, made, network
from wdlab.optimizers import SGDS, AdamS, PAdam
from wdlab.regularizers import L2, DecoupledDecay, PathProx, PNormDecay

COPIED = {"deep copy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing))}
copied_ways = pytest.mark.parametrize("copied", COPIED.values(), ids=COPIED)


def train(model, optimizer, count=3, seed=1):
    torch.manual_seed(seed)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


@copied_ways
@pytest.mark.parametrize("name", METHODS)
def test_a_copied_trainer_goes_on_alike(name, copied):
    torch.manual_seed(0)
    model = network()
    optimizer, method = adam(model), made(name, model)
    method.attach(optimizer)
    train(model, optimizer)
    model2, optimizer2, method2 = copied((model, optimizer, method))
    train(model, optimizer, seed=2)
    train(model2, optimizer2, seed=2)
    assert same(model, model2)
    assert method2.updates == method.updates == 6
    assert torch.equal(method2.penalty(), method.penalty())


@copied_ways
@pytest.mark.parametrize("name", METHODS)
def test_copied_before_it_is_attached_it_acts_on_the_copy(name, copied):
    torch.manual_seed(0)
    model = network()
    pair = model, made(name, model)
    model2, method2 = copied(pair)
    trained = []
    for network_, method in (pair, (model2, method2)):
        optimizer = adam(network_)
        method.attach(optimizer)
        train(network_, optimizer)
        trained.append(network_)
    assert same(*trained)


@copied_ways
def test_the_copy_is_no_part_of_the_original(copied):
    model = network()
    optimizer, method = adam(model), L2.for_model(model, 0.1)
    method.attach(optimizer)
    before = copy.deepcopy(model)
    model2, optimizer2, method2 = copied((model, optimizer, method))
    train(model2, optimizer2)
    assert same(model, before) and method.updates == 0 and method2.updates == 3


@copied_ways
def test_a_copied_handle_takes_the_copied_method_off(copied):
    model = network()
    optimizer, method = adam(model), L2.for_model(model, 0.1)
    handle = method.attach(optimizer)
    model2, optimizer2, method2, handle2 = copied((model, optimizer, method, handle))
    handle2.remove()
    for m, o in ((model, optimizer), (model2, optimizer2)):
        train(m, o)
    assert method.updates == 3 and method2.updates == 0
    handle2.remove()
    method2.attach(optimizer2)


@copied_ways
def test_a_copy_may_be_attached_again_and_acts_once(copied):
    model = network()
    optimizer, method = adam(model), L2.for_model(model, 0.1)
    method.attach(optimizer)
    model2, optimizer2, method2 = copied((model, optimizer, method))
    handle = method2.attach(optimizer2)
    with pytest.raises(RuntimeError, match="already attached"):
        method2.attach(optimizer2)
    for m, o in ((model, optimizer), (model2, optimizer2)):
        train(m, o)
    assert same(model, model2)
    handle.remove()
    train(model2, optimizer2)
    assert method2.updates == 3


def test_a_copy_without_its_optimizer_goes_to_another():
    model = network()
    method = L2.for_model(model, 0.1)
    method.attach(adam(model))
    model2, method2 = copy.deepcopy((model, method))
    optimizer2 = adam(model2)
    method2.attach(optimizer2)
    train(model2, optimizer2)
    assert method2.updates == 3 and method.updates == 0


def test_a_shallow_copy_is_attached_to_nothing():
    model = network()
    optimizer, method = adam(model), L2.for_model(model, 0.1)
    method.attach(optimizer)
    twin = copy.copy(method)
    train(model, optimizer)
    assert method.updates == 3 and twin.updates == 0
    assert all(p is q for p, q in zip(twin.params, method.params, strict=True))


@copied_ways
def test_copied_methods_keep_their_turns(copied):
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, second = DecoupledDecay.for_model(model, 0.5), PNormDecay.for_model(model, 0.5, late=True)
    second.attach(optimizer)
    first.attach(optimizer)
    model2, _, _, optimizer2 = copied((model, first, second, optimizer))
    train(model, optimizer)
    train(model2, optimizer2)
    assert same(model, model2)


@copied_ways
@pytest.mark.parametrize("make", [AdamS, SGDS, PAdam])
@pytest.mark.parametrize("fused", [False, True])
def test_a_copied_drop_in_optimizer_goes_on_with_a_method_attached(make, fused, copied):
    torch.manual_seed(0)
    model = network()
    optimizer, method = make(model.parameters(), lr=0.01, weight_decay=0.1, fused=fused), PathProx.for_model(model, 0.1)
    method.attach(optimizer)
    train(model, optimizer)
    model2, optimizer2, _ = copied((model, optimizer, method))
    train(model, optimizer, seed=2)
    train(model2, optimizer2, seed=2)
    assert same(model, model2)


def test_a_copied_pathprox_has_the_weights_of_its_own_model():
    model = network()
    model2, method2 = copy.deepcopy((model, PathProx.for_model(model, 0.1)))
    assert len(method2.other) == 1 and method2.other[0] is model2[4].weight
