"""Fused steps where weights, gradients and moments lie in memory in different orders."""

import copy

import pytest
import torch
from torch import nn

from wdlab.optimizers import SGDS, AdamS, PAdam
from wdlab.strides import match_state_strides, same_strides, with_strides_of

DROP_INS = {
    "adams": (AdamS, {}),
    "amsgrad": (AdamS, {"amsgrad": True}),
    "padam": (PAdam, {}),
    "sgds": (SGDS, {"momentum": 0.9}),
}
drop_ins = pytest.mark.parametrize("name", DROP_INS)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1)).double()


def optimizer_of(name, model, fused):
    make, options = DROP_INS[name]
    return make(model.parameters(), lr=1e-2, weight_decay=0.1, fused=fused, **options)


def steps(model, optimizer, count=3, change=lambda gradient: gradient):
    for i in range(count):
        torch.manual_seed(i)
        optimizer.zero_grad()
        model(torch.randn(2, 3, 8, 8, dtype=torch.float64)).square().mean().backward()
        for p in model.parameters():
            p.grad = change(p.grad)
        optimizer.step()


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def channels_last(model):
    return model.to(memory_format=torch.channels_last)


@drop_ins
def test_a_state_of_another_order_is_loaded(name):
    found = []
    for fused in (True, False):
        model = network()
        optimizer = optimizer_of(name, model, fused)
        steps(model, optimizer)
        model = channels_last(copy.deepcopy(model))
        other = optimizer_of(name, model, fused)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        steps(model, other)
        found.append(flat(model))
    assert torch.allclose(*found, rtol=0, atol=1e-12)


@drop_ins
def test_the_weights_change_their_order_on_the_way(name):
    found = []
    for fused in (True, False):
        model = network()
        optimizer = optimizer_of(name, model, fused)
        steps(model, optimizer)
        channels_last(model)
        steps(model, optimizer)
        found.append(flat(model))
    assert torch.allclose(*found, rtol=0, atol=1e-12)


@drop_ins
@pytest.mark.parametrize("model_format", [torch.contiguous_format, torch.channels_last])
def test_the_gradients_lie_in_another_order(name, model_format):
    made = []

    def turned(gradient):
        contiguous = gradient.is_contiguous()
        made.append(gradient.contiguous(memory_format=torch.channels_last if contiguous else torch.contiguous_format))
        return made[-1]

    found = []
    for fused in (True, False):
        model = network().to(memory_format=model_format)
        optimizer = optimizer_of(name, model, fused)
        steps(model, optimizer, change=lambda gradient: turned(gradient) if gradient.dim() == 4 else gradient)
        assert [p.grad is gradient for p, gradient in zip([model[0].weight], made[-3:-2], strict=True)] == [True]
        found.append(flat(model))
    assert torch.allclose(*found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_the_state_of_torchs_own_fused_step_is_brought_into_order(make):
    found = []
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}
    for fused in (True, False):
        model = network()
        optimizer = make(model.parameters(), lr=1e-2, fused=fused, **options)
        steps(model, optimizer)
        model = channels_last(copy.deepcopy(model))
        other = make(model.parameters(), lr=1e-2, fused=fused, **options)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        match_state_strides(other)
        steps(model, other)
        found.append(flat(model))
    assert torch.allclose(*found, rtol=0, atol=1e-12)


def test_numbers_stay_and_strides_change():
    weight = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    moment = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    laid_out = with_strides_of(moment, weight)
    assert torch.equal(laid_out, moment) and laid_out.dtype == torch.float64 and not laid_out.requires_grad
    assert laid_out.stride() == weight.stride() != moment.stride()
    assert same_strides(laid_out, weight) and not same_strides(moment, weight)


def test_dimensions_of_size_one_do_not_count():
    contiguous = torch.zeros(8, 4, 1, 1)
    assert same_strides(contiguous, contiguous.as_strided((8, 4, 1, 1), (4, 1, 4, 4)))
