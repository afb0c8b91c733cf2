"""Metrics against values worked out by hand."""

import math

import pytest
import torch
from torch import nn

from wdlab.data import Split
from wdlab.homogeneous import unit_paths
from wdlab.metrics import gradients, norms, objective, sparsity


def tensors(*values):
    return [torch.tensor(v, dtype=torch.float32) for v in values]


def test_weight_norms_are_over_all_weights_together():
    weights = tensors([[3.0, 0.0]], [[0.0, -4.0], [12.0, 0.0]])
    assert norms.weight_norm(weights, 2).item() == pytest.approx(13.0)
    assert norms.weight_norm(weights, 1).item() == pytest.approx(19.0)


def test_path_norm_and_active_units():
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    first.weight.data = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    second.weight.data = torch.tensor([[2.0, 0.0]])
    paths = unit_paths([(first, second)])
    assert norms.path_norm(paths).item() == pytest.approx(10.0)
    assert sparsity.active_units(paths).item() == 0.5


def test_zero_weights_are_those_below_the_threshold():
    assert sparsity.zero_weights(tensors([0.0, 1e-14, -1e-14, 1e-12])).item() == 0.75


def test_what_is_not_finite_is_neither_zero_nor_active():
    assert math.isnan(sparsity.zero_weights(tensors([0.0, float("nan")])).item())
    assert math.isnan(sparsity.active_units(tensors([0.0, float("inf")])).item())


def test_relative_update_and_gradient_norm():
    before, after = tensors([3.0, 4.0]), tensors([3.0, 4.5])
    assert gradients.relative_update(before, after).item() == pytest.approx(0.1)
    parameters = [nn.Parameter(t) for t in tensors([1.0, 1.0], [1.0])]
    assert gradients.gradient_norm(parameters).item() == 0.0
    parameters[0].grad = torch.tensor([3.0, 4.0])
    assert gradients.gradient_norm(parameters).item() == pytest.approx(5.0)


def test_evaluation_is_over_the_whole_split_whatever_the_chunks(monkeypatch):
    torch.manual_seed(0)
    model, split = nn.Linear(3, 4), Split(torch.randn(23, 3), torch.randint(4, (23,)))
    whole = objective.evaluate(model, split)
    monkeypatch.setattr(objective, "CHUNK", 5)
    parts = objective.evaluate(model, split)
    expected = nn.functional.cross_entropy(model(split.inputs), split.labels).item()
    assert whole[0].item() == pytest.approx(expected, rel=1e-6) == parts[0].item()
    assert whole[1] == parts[1] == (model(split.inputs).argmax(1) == split.labels).double().mean()


def test_evaluation_is_in_evaluation_mode_and_leaves_the_mode_alone():
    model, split = nn.Dropout(0.5), Split(torch.eye(4), torch.arange(4))
    model.train()
    assert objective.evaluate(model, split)[1] == 1.0 and model.training
