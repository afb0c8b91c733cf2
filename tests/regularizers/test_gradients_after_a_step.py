"""After a step ``p.grad`` is the gradient of the loss, and gradients made by ``expand`` are as good as any."""

import copy

import pytest
import torch
from torch import nn

from tests.problem import same
from tests.regularizers.methods import IN_THE_GRADIENT, METHODS, made, network
from wdlab.optimizers import SGDS, AdamS, PAdam
from wdlab.regularizers import L2, PathProx


def prepared(name, make=torch.optim.Adam, **options):
    torch.manual_seed(0)
    model = network()
    optimizer = make(model.parameters(), lr=0.01, **options)
    method = made(name, model)
    method.attach(optimizer)
    model(torch.randn(8, 6)).square().mean().backward()
    return model, optimizer, method


@pytest.mark.parametrize("name", METHODS)
def test_the_gradients_are_the_very_ones_of_the_loss(name):
    model, optimizer, _ = prepared(name)
    gradients = [p.grad for p in model.parameters()]
    values = copy.deepcopy(gradients)
    for _ in range(2):
        optimizer.step()
    for p, gradient, value in zip(model.parameters(), gradients, values, strict=True):
        assert p.grad is gradient and torch.equal(gradient, value)


def test_several_methods_give_the_gradients_back():
    model, optimizer, _ = prepared("l2")
    made("pathprox", model).attach(optimizer)
    gradients = [p.grad for p in model.parameters()]
    optimizer.step()
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_second_step_on_the_same_gradient_is_that_of_torchs_weight_decay(momentum):
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    theirs = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    other = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=momentum, weight_decay=0.5)
    L2(model.parameters(), 0.5).attach(optimizer)
    inputs = torch.randn(8, 6)
    for network_, taken in ((model, optimizer), (theirs, other)):
        network_(inputs).square().mean().backward()
        for _ in range(3):
            taken.step()
    assert same(model, theirs)


def failing(optimizer):
    """A step whose own part raises an error."""

    class Failing(type(optimizer)):
        def step(self, closure=None):
            raise ArithmeticError

    whole, optimizer.__class__ = optimizer.__class__, Failing
    optimizer._patch_step_function()
    with pytest.raises(ArithmeticError):
        optimizer.step()
    optimizer.__class__ = whole


@pytest.mark.parametrize("name", IN_THE_GRADIENT)
def test_a_step_that_fails_and_is_taken_again_adds_the_penalty_once(name):
    model, optimizer, _ = prepared(name, torch.optim.Adam)
    straight, other, _ = prepared(name, torch.optim.Adam)
    made_up = [p.grad.clone() for p in model.parameters()]
    failing(optimizer)
    optimizer.step()
    other.step()
    if name not in ("l2 second", "l2 gated"):  # which have moments of their own
        assert same(model, straight)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), made_up, strict=True))


def test_a_gradient_written_after_a_failed_step_is_kept():
    model, optimizer, _ = prepared("l2", torch.optim.SGD)
    failing(optimizer)
    optimizer.zero_grad(set_to_none=False)
    inputs = torch.randn(8, 6)
    model(inputs).square().mean().backward()
    straight, other, _ = prepared("l2", torch.optim.SGD)
    other.zero_grad()
    straight(inputs).square().mean().backward()
    optimizer.step()
    other.step()
    assert same(model, straight)


def test_a_gradient_that_the_optimizer_takes_away_stays_away():
    class Forgetful(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.zero_grad()

    model, optimizer, _ = prepared("l2", Forgetful)
    optimizer.step()
    assert all(p.grad is None for p in model.parameters())


EXPANDED = {
    **{name: (name, torch.optim.Adam, {}) for name in METHODS},
    **{f"{name} fused": (name, torch.optim.Adam, {"fused": True}) for name in IN_THE_GRADIENT if name != "pathprox"},
}


@pytest.mark.parametrize("case", EXPANDED)
def test_expanded_gradients_are_as_good_as_any(case):
    name, make, options = EXPANDED[case]
    trained = []
    for expanded in (True, False):
        model, optimizer, method = prepared(name, make)
        for group in optimizer.param_groups:
            group.update(options)
        decayed = {id(p) for p in method.params}
        for p in model.parameters():
            alike = torch.tensor(0.3).expand(p.shape)
            p.grad = alike if expanded and id(p) in decayed else alike.clone()
        for _ in range(3):
            optimizer.step()
        trained.append(model)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(*map(nn.Module.parameters, trained), strict=True))


@pytest.mark.parametrize("make", [AdamS, SGDS, PAdam])
@pytest.mark.parametrize("fused", [False, True])
def test_drop_in_optimizers_take_expanded_gradients(make, fused):
    trained = []
    for expanded in (True, False):
        torch.manual_seed(0)
        model = network()
        optimizer = make(model.parameters(), lr=0.01, weight_decay=0.1, fused=fused)
        for _ in range(3):
            optimizer.zero_grad()
            sum(p.sum() for p in model.parameters()).backward()
            for p in model.parameters():
                p.grad = torch.tensor(0.3).expand(p.shape) if expanded else torch.full_like(p, 0.3)
            gradients = [p.grad for p in model.parameters()]
            optimizer.step()
            assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
        trained.append(model)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(*map(nn.Module.parameters, trained), strict=True))


def test_the_weights_outside_of_pathprox_pairs_get_their_penalty_once():
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    PathProx.for_model(model, 0.5).attach(optimizer)
    before = model[4].weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.step()
    assert torch.allclose(model[4].weight, before * 0.95**2)
