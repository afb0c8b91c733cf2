"""Batch norms of a stack: values, gradients and running statistics are those of each run by itself."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.metrics.examples import Examples
from wdlab.models.mlp import MLP
from wdlab.stacked.network import StackedNetwork

RUNS, BATCH = 5, 8


def networks():
    torch.manual_seed(0)
    models = [MLP((1, 3, 3), 4, width=6, depth=3, norm="batch") for _ in range(RUNS)]
    for model in models:
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm1d)):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return models


def batches(steps):
    torch.manual_seed(1)
    return [(torch.randn(RUNS, BATCH, 1, 3, 3), torch.randint(4, (RUNS, BATCH))) for _ in range(steps)]


def test_losses_gradients_and_running_statistics_are_those_of_single_runs():
    models = networks()
    alone = copy.deepcopy(models)
    stack = StackedNetwork(models)
    for inputs, labels in batches(3):
        losses = stack.backward(inputs, labels)
        for k, (model, single) in enumerate(zip(models, alone, strict=True)):
            single.zero_grad()
            loss = nn.functional.cross_entropy(single(inputs[k]), labels[k])
            loss.backward()
            assert losses[k].item() == pytest.approx(loss.item(), rel=1e-6)
            for p, q in zip(model.parameters(), single.parameters(), strict=True):
                assert torch.allclose(p.grad, q.grad, rtol=1e-5, atol=1e-6)
            assert model.state_dict().keys() == single.state_dict().keys()
            for name, value in single.state_dict().items():
                assert torch.allclose(model.state_dict()[name], value, rtol=1e-5, atol=1e-7), name
                assert model.state_dict()[name].shape == value.shape


def test_whole_splits_are_evaluated_by_the_running_statistics():
    models = networks()
    alone = copy.deepcopy(models)
    stack = StackedNetwork(models)
    (inputs, labels), *_ = batches(1)
    stack.backward(inputs, labels)
    images, answers = torch.randn(50, 1, 3, 3), torch.randint(4, (50,))
    split = Examples(images, answers)
    results = stack.evaluate(SimpleNamespace(train=split, val=split, test=split))
    loss, accuracy = results["test"]
    for k, single in enumerate(alone):
        single(inputs[k])  # in training mode: updates the running statistics
        logits = single.eval()(images)
        assert loss[k].item() == pytest.approx(nn.functional.cross_entropy(logits, answers).item(), rel=1e-5)
        assert accuracy[k].item() == pytest.approx((logits.argmax(1) == answers).double().mean().item())


def test_a_runs_numbers_do_not_depend_on_the_size_of_its_stack():
    torch.manual_seed(0)
    models = [MLP((1, 8, 8), 4, width=12, depth=3, norm="batch") for _ in range(RUNS)]
    inputs, labels = torch.randn(RUNS, 32, 1, 8, 8), torch.randint(4, (RUNS, 32))
    lonely = [copy.deepcopy(models[3])]
    together, apart = StackedNetwork(models), StackedNetwork(lonely)
    losses, loss = together.backward(inputs, labels), apart.backward(inputs[3:4], labels[3:4])
    assert torch.equal(losses[3], loss[0])
    for p, q in zip(models[3].parameters(), lonely[0].parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert all(torch.equal(models[3].state_dict()[k], v) for k, v in lonely[0].state_dict().items())
