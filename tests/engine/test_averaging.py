"""What the averaged network has of the model besides its weights: buffers, and batch norm of every kind."""

import copy
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wdlab.engine.averaging import EXAMPLES_PER_PASS, WeightAverage

INPUTS = torch.randn(3 * EXAMPLES_PER_PASS, 6, generator=torch.Generator().manual_seed(0))


class Inputs:
    """A split of inputs alone."""

    def __len__(self):
        return len(INPUTS)

    def examples(self, which):
        return INPUTS[which], None


class Buffered(nn.Module):
    """A network that counts its forwards, has a scale that is set from outside, and a whole number to train with."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.register_buffer("scale", torch.ones(4))
        self.register_buffer("seen", torch.zeros(0))
        self.register_buffer("count", torch.tensor(0))
        self.rounds = nn.Parameter(torch.tensor(2), requires_grad=False)

    def forward(self, x):
        if self.training:
            self.count = self.count + 1
            self.seen = torch.cat([self.seen, x.detach().mean().reshape(1)])
        return self.layer(x) * self.scale * self.rounds


def trained(model, decay=0.5, count=4):
    torch.manual_seed(1)
    average = WeightAverage(model, decay)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().mean().backward()
        optimizer.step()
        average.update()
    return average


def test_buffers_are_the_models_at_that_time_and_its_own():
    model = Buffered()
    average = trained(model)
    model.scale.fill_(3.0)
    model.rounds.fill_(5)
    average.update()
    network = average.refresh_batch_statistics(Inputs())
    assert (network.count, network.rounds) == (4, 5)
    assert torch.equal(network.seen, model.seen) and torch.equal(network.scale, model.scale)
    model.scale.fill_(7.0)
    assert torch.equal(network.scale, torch.full((4,), 3.0))
    fresh = WeightAverage(copy.deepcopy(model), 0.5)
    fresh.load_state_dict(average.state_dict())


def test_it_agrees_with_torchs_average_of_a_model():
    model = Buffered()
    theirs = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    del model.rounds, theirs.module.rounds
    model.rounds = theirs.module.rounds = 2
    model.seen = theirs.module.seen = torch.zeros(4)  # which torch cannot copy where the size changes
    model.forward = types.MethodType(lambda self, x: self.layer(x) * self.scale * self.rounds, model)
    theirs.update_parameters(model)
    average = WeightAverage(model, 0.5)
    for _ in range(3):
        with torch.no_grad():
            model.layer.weight.add_(1.0)
            model.scale.mul_(2.0)
        average.update()
        theirs.update_parameters(model)
    network = average.refresh_batch_statistics(Inputs())
    assert torch.allclose(network.layer.weight, theirs.module.layer.weight)
    assert torch.equal(network.scale, theirs.module.scale)


class Shared(nn.Module):
    """One batch norm in two places, without weights of its own."""

    def __init__(self, **options):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.norm = self.again = nn.BatchNorm1d(6, **options)

    def forward(self, x):
        x = self.norm(self.first(x))
        return self.last(F.relu(self.again(self.second(F.relu(x)))))


@pytest.mark.parametrize("affine", [False, True])
def test_a_shared_batch_norm_has_the_mean_of_all_it_sees(affine):
    model = Shared(affine=affine)
    network = trained(model).refresh_batch_statistics(Inputs())
    seen = []
    network.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    network.train()
    network.norm.momentum = 0.0  # which leaves the statistics alone
    with torch.no_grad():
        for start in range(0, len(INPUTS), EXAMPLES_PER_PASS):
            network(INPUTS[start : start + EXAMPLES_PER_PASS])
    means = torch.stack([values.mean(0) for values in seen])
    assert len(seen) == 6 and torch.allclose(network.norm.running_mean, means.mean(0), atol=1e-5)
    assert network.norm.num_batches_tracked == 12


def test_a_batch_norm_without_statistics_needs_none():
    model = Shared(track_running_stats=False)
    network = trained(model).refresh_batch_statistics(Inputs())
    assert network.norm.running_mean is None and network.training


def test_a_frozen_batch_norm_keeps_the_statistics_it_has():
    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    model = Frozen(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    average = WeightAverage(model, 0.5)
    model.train()
    model[1].running_mean.fill_(0.7)
    average.update()
    network = average.refresh_batch_statistics(Inputs())
    assert torch.equal(network[1].running_mean, torch.full((4,), 0.7))
    assert not torch.equal(network[4].running_mean, model[4].running_mean)


def test_statistics_of_other_norms_are_the_models():
    model = nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten())
    model.append(nn.Linear(6, 4))
    network = trained(model).refresh_batch_statistics(Inputs())
    assert torch.equal(network[1].running_mean, model[1].running_mean) and network[1].running_mean.any()
