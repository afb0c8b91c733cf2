"""The gradient of the loss on the whole training split, against the gradient of all examples at once."""

import copy

import pytest
import torch
from torch import nn

from tests.metrics.examples import random_images
from wdlab.metrics import full_gradient
from wdlab.metrics.objective import cross_entropy
from wdlab.models import MLP


@pytest.mark.parametrize("chunk", [1, 5, 250])
def test_it_is_the_gradient_of_all_examples_in_any_chunks(chunk, monkeypatch):
    monkeypatch.setattr(full_gradient, "EXAMPLES_PER_CHUNK", chunk)
    torch.manual_seed(0)
    model, split = MLP((1, 4, 4), 3, width=6, depth=3), random_images().train
    parameters = list(model.parameters())
    decayed = [p for p in parameters if p.dim() > 1]
    with torch.no_grad():
        found = full_gradient.measure_full_gradient(model, split, parameters, decayed)
    assert all(p.grad is None for p in parameters)
    inputs, labels = split.examples(slice(None))
    cross_entropy(model(inputs), labels).backward()
    sizes = {"gradient/full_norm": parameters, "gradient/full_weights_norm": decayed}
    for name, of in sizes.items():
        assert found[name] == pytest.approx(torch.cat([p.grad.flatten() for p in of]).norm().item(), rel=1e-5)
    products = sum(p.grad.norm() * p.detach().norm() for p in decayed)
    assert found["scale_invariant/full_gradient_times_weight"] == pytest.approx(products.item(), rel=1e-5)


def test_batch_norm_takes_the_statistics_of_each_chunk(monkeypatch):
    monkeypatch.setattr(full_gradient, "EXAMPLES_PER_CHUNK", 5)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    split, before = random_images().train, copy.deepcopy(network.state_dict())
    loss, slopes = full_gradient.loss_and_gradient(network, split, list(network.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    inputs, labels = split.examples(slice(None))
    assert len(labels) == 12  # three chunks of four
    losses = [cross_entropy(network.train()(inputs[k : k + 4]), labels[k : k + 4]) for k in (0, 4, 8)]
    mean = torch.stack(losses).mean()
    assert loss == pytest.approx(mean.item(), rel=1e-6)
    for slope, expected in zip(slopes, torch.autograd.grad(mean, list(network.parameters())), strict=True):
        assert torch.allclose(slope.float(), expected, atol=1e-7)
