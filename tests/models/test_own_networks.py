"""Networks of one's own: their function stays the same when they are pruned or balanced, or they are left alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from wdlab.homogeneous import homogeneous_pairs, pairs_form_a_chain, weights
from wdlab.pruning import prune_dead_units
from wdlab.regularizers import L2, PathProx


class Own(nn.Module):
    """Three layers, of which the forward is written by hand."""

    def __init__(self, **norm):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6, **norm)

    def forward(self, x):
        raise NotImplementedError


class SharedNorm(Own):
    def forward(self, x):
        return self.c(F.relu(self.norm(self.b(F.relu(self.norm(self.a(x)))))))


class ReadStatistics(Own):
    def forward(self, x):
        hidden = F.relu(self.norm(self.a(x)))
        return self.c(F.relu(self.b(hidden))) + self.norm.running_mean.square().sum()


class ReadStatisticsOfFeatures(Own):
    def forward(self, x):
        hidden = F.relu(self.b(F.relu(self.norm(self.a(x)))))
        return self.c(hidden - self.norm.running_mean)


class FunctionalBatchNorm(Own):
    def forward(self, x):
        norm = self.norm
        x = F.batch_norm(self.a(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training)
        return self.c(F.relu(self.b(F.relu(x))))


class FunctionalLayerNorm(Own):
    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(F.layer_norm(self.a(x), (6,))))))


class Normalized(Own):
    def forward(self, x):
        x = F.relu(self.a(x))
        return self.c(F.relu(self.b(x / x.norm(dim=1, keepdim=True).clamp(min=1e-3))))


class NormOfWeights(Own):
    def forward(self, x):
        hidden = F.relu(self.b(F.relu(self.a(x))))
        return self.c(hidden) + sum(p.square().sum() for p in (self.a.weight, self.a.bias, self.b.bias))


class NormOfAllParameters(Own):
    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x))))), sum(p.norm() for p in self.parameters())


class NormalizedWeights(Own):
    def forward(self, x):
        x = F.linear(x, F.normalize(self.a.weight), self.a.bias)
        return self.c(F.relu(self.b(F.relu(x))))


class WithoutAffine(Own):
    def __init__(self):
        super().__init__(affine=False)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.norm(self.a(x))))))


class SharedNormWithoutAffine(SharedNorm):
    def __init__(self):
        super().__init__(affine=False)


class SharedNormWithoutStatistics(SharedNorm):
    def __init__(self):
        super().__init__(affine=False, track_running_stats=False)


class ReadThroughState(Own):
    def forward(self, x):
        mean = dict(self.named_buffers())["norm.running_mean"]
        return self.c(F.relu(self.b(F.relu(self.norm(self.a(x)))))) + mean.abs().sum()


class Parametrized(Own):
    def __init__(self):
        super().__init__()
        parametrizations.weight_norm(self.a)
        parametrize.register_parametrization(self.b, "bias", nn.Tanh())

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class SpectralNorm(Own):
    def __init__(self):
        super().__init__()
        parametrizations.spectral_norm(self.b)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


NETWORKS = [
    *(SharedNorm, ReadStatistics, ReadStatisticsOfFeatures, FunctionalBatchNorm, FunctionalLayerNorm, Normalized),
    *(NormOfWeights, NormOfAllParameters, NormalizedWeights, WithoutAffine, SharedNormWithoutAffine),
    *(SharedNormWithoutStatistics, ReadThroughState, Parametrized, SpectralNorm),
]
networks = pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)


def prepared(make):
    """A network in evaluation mode that has dead units with and without a constant, and statistics."""
    torch.manual_seed(0)
    model = make().double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for name, buffer in model.named_buffers():
            if name.startswith("norm.running"):
                buffer.copy_(torch.rand(6) + 0.5)
        plain = [layer for layer in (model.a, model.b, model.c) if not parametrize.is_parametrized(layer, "weight")]
        for layer in plain:
            layer.weight[:, 4:] = 0
            if layer is not model.c:
                layer.weight[:2] = 0
    return model.eval()


def outputs(model, inputs):
    found = model(inputs)
    return found if isinstance(found, tuple) else (found,)


@networks
def test_pruning_keeps_the_function(make):
    model, inputs = prepared(make), torch.randn(10, 6, dtype=torch.float64)
    before = outputs(copy.deepcopy(model), inputs)
    pruned = prune_dead_units(model)
    for one, other in zip(before, outputs(pruned, inputs), strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_units_before_a_batch_norm_without_parameters_are_taken_out():
    pruned = prune_dead_units(prepared(WithoutAffine))
    assert pruned.a.weight.shape[0] < 6 and pruned.norm.num_features == pruned.a.weight.shape[0]


@networks
def test_balancing_keeps_the_function_or_is_refused(make):
    model, inputs = prepared(make), torch.randn(10, 6, dtype=torch.float64)
    before = outputs(copy.deepcopy(model), inputs)
    pairs = homogeneous_pairs(model)
    if not pairs:
        with pytest.raises(ValueError):
            PathProx.for_model(model, 0.1)
        return
    with torch.no_grad():
        for first, second in pairs:
            first.weight.mul_(2.0)
            first.bias.mul_(2.0)
            second.weight.div_(2.0)
    for one, other in zip(before, outputs(model, inputs), strict=True):
        assert torch.allclose(one, other, atol=1e-10)
    assert pairs_form_a_chain(model)


def test_weights_of_a_parametrized_layer_are_not_decided_silently():
    for make in (Parametrized, SpectralNorm):
        with pytest.raises(ValueError, match=r"cannot tell whether .* is to be decayed: pass the list"):
            weights(make())
    assert len(weights(NormalizedWeights())) == 3
    assert L2.for_model(FunctionalBatchNorm(), 0.1).describe().startswith("L2: 3 tensors, 90 values")
