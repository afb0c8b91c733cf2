"""L2 in the loss gradient is torch's ``weight_decay``, to the last bit."""

import copy

import pytest
import torch
from torch import nn

from wdlab.models import MLP
from wdlab.regularizers import L2


@pytest.mark.parametrize(
    "make",
    [
        lambda p, wd: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=wd),
        lambda p, wd: torch.optim.Adam(p, lr=1e-2, weight_decay=wd),
    ],
    ids=["sgd", "adam"],
)
def test_equals_the_weight_decay_of_torch(make):
    torch.manual_seed(0)
    model = MLP((1, 4, 4), classes=3, width=8, depth=3)
    twin = copy.deepcopy(model)
    inputs, labels = torch.randn(16, 1, 4, 4), torch.randint(3, (16,))
    ours, theirs = make(model.parameters(), 0.0), make(twin.parameters(), 0.01)
    L2.for_model(model, 0.01, scope="all").attach(ours)
    for _ in range(10):
        for network, optimizer in ((model, ours), (twin, theirs)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_penalty_is_half_the_squared_norm_times_strength():
    weights = [torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([[2.0]], requires_grad=True)]
    assert L2(weights, strength=0.1).penalty().item() == pytest.approx(0.1 * (25 + 4) / 2)


def test_a_parameter_without_a_gradient_is_left_alone():
    frozen, live = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([frozen, live], lr=1.0)
    L2([frozen, live], strength=0.5).attach(optimizer)
    live.grad = torch.zeros(2)
    optimizer.step()
    assert frozen.tolist() == [1.0, 1.0] and live.tolist() == [0.5, 0.5]
