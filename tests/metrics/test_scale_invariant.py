"""What must not change when a layer under normalization is scaled, and what does."""

import copy
import math

import pytest
import torch
from torch import nn

from tests.metrics.examples import make_step, random_images
from wdlab.metrics import Metrics, norms, scale_invariant
from wdlab.models import MLP
from wdlab.regularizers import Regularizer

INVARIANT = {f"scale_invariant/{name}" for name in ("gradient_times_weight", "angular_update", "sharpness", "trace")}
RAW = {"norm/weight_l2", "gradient/loss_norm", "sharpness/top_eigenvalue", "sharpness/trace"}


def normalized_network():
    torch.manual_seed(0)
    layers = [nn.Flatten()]
    for inputs, outputs in ((16, 5), (5, 4), (4, 3)):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, eps=1e-30), nn.Tanh()]
    return nn.Sequential(*layers).double()


def measured(factors, lr=0.5):
    """All metrics behind a step, with the weights of each layer scaled by c and its learning rate by c^2."""
    model, data = copy.deepcopy(normalized_network()), random_images(dtype=torch.float64)
    layers = [m for m in model if isinstance(m, nn.Linear)]
    for layer, c in zip(layers, factors, strict=True):
        layer.weight.data *= c
    groups = [{"params": [layer.weight], "lr": c * c * lr} for layer, c in zip(layers, factors, strict=True)]
    scales = [p for m in model if isinstance(m, nn.BatchNorm1d) for p in m.parameters()]
    optimizer = torch.optim.SGD([*groups, {"params": scales, "lr": lr}])
    regularizer = Regularizer.for_model(model)
    metrics = Metrics(model, data, regularizer)
    with regularizer.attach(optimizer):
        make_step(metrics, optimizer, *data.train.examples(slice(None)))
        return metrics.measure(True, sharpness=True)


@pytest.mark.parametrize("factors", [(3.0, 1.0, 1.0), (1.0, 0.2, 1.0), (1.0, 1.0, 7.0), (4.0, 4.0, 4.0)])
def test_scaling_layers_changes_raw_metrics_alone(factors):
    before, after = measured((1.0, 1.0, 1.0)), measured(factors)
    assert before["sharpness/top_eigenvalue"] != 0 and before["scale_invariant/angular_update"] > 1e-3
    for key in INVARIANT:
        assert after[key] == pytest.approx(before[key], rel=1e-6), key
    for key in RAW:
        assert abs(after[key] / before[key] - 1) > 0.01, key


def test_the_effective_learning_rate_survives_a_common_factor():
    key = "scale_invariant/effective_lr"
    before, after = measured((1.0, 1.0, 1.0)), measured((4.0, 4.0, 4.0))
    assert after[key] == pytest.approx(before[key], rel=1e-6)
    assert after["update/relative"] == pytest.approx(before["update/relative"], rel=1e-6)
    weights = [m.weight for m in normalized_network() if isinstance(m, nn.Linear)]
    logs = [math.log10(0.5 / w.norm().item() ** 2) for w in weights]
    assert before["scale_invariant/log_effective_lr"] == pytest.approx(sum(logs) / 3)
    assert after["scale_invariant/log_effective_lr"] == pytest.approx(sum(logs) / 3)
    assert before[key] == pytest.approx(0.5 / norms.total_norm(norms.each_norm(norms.as_rows(weights))).item() ** 2)


def test_gradient_times_weight_is_a_sum_over_layers():
    products = scale_invariant.gradient_times_weight(torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0, 7.0]]))
    assert products.item() == 31.0


def angle(old, new):
    old, new = torch.tensor(old, dtype=torch.float64), torch.tensor(new, dtype=torch.float64)
    old, new, update = ([rows] for rows in norms.as_rows([old, new, new - old]))
    products = norms.each_dot(update, old)
    return scale_invariant.angles(*map(norms.each_norm, (old, new, update)), products).item()


def test_angles_in_radians():
    assert angle([3.0, 0.0], [0.0, 0.1]) == pytest.approx(math.pi / 2)
    assert angle([1.0, 0.0], [2.0, 2.0]) == pytest.approx(math.pi / 4)
    assert angle([1.0, 0.0], [-1.0, 0.0]) == pytest.approx(math.pi)
    assert angle([1.0, 0.0], [1.0, 1e-9]) == pytest.approx(1e-9, rel=1e-12)
    assert angle([1.0, 1.0], [5.0, 5.0]) == pytest.approx(0.0, abs=1e-7)


def test_a_weight_that_is_zero_before_or_behind_the_step_has_not_turned():
    assert angle([0.0, 0.0], [1.0, 0.0]) == angle([1.0, 3.0], [0.0, 0.0]) == angle([0.0], [0.0]) == 0.0


def test_a_tiny_angle_in_float32_is_seen():
    torch.manual_seed(0)
    data, model = random_images(), nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False))
    regularizer, optimizer = Regularizer.for_model(model), torch.optim.SGD(model.parameters(), lr=1e-4)
    metrics, old = Metrics(model, data, regularizer), model[1].weight.detach().double().flatten()
    with regularizer.attach(optimizer):
        make_step(metrics, optimizer, *data.train.examples(slice(None)))
    new = model[1].weight.detach().double().flatten()
    across = new - old * (torch.dot(new, old) / old.square().sum())
    expected = torch.atan2(across.norm(), torch.dot(new, old) / old.norm()).item()
    assert metrics.measure(False)["scale_invariant/angular_update"] == pytest.approx(expected, rel=1e-3)
    assert expected < 1e-4


def test_the_effective_learning_rate_of_adam_has_one_power_of_the_norm_and_leaves_out_the_last_layer():
    torch.manual_seed(0)
    model, data = MLP((1, 4, 4), 3, width=5, depth=3, norm="batch"), random_images()
    optimizer, regularizer = torch.optim.Adam(model.parameters(), lr=0.02), Regularizer.for_model(model)
    metrics = Metrics(model, data, regularizer)
    first, second, _ = (m.weight.norm().item() for m in model.layers if isinstance(m, nn.Linear))
    with regularizer.attach(optimizer):
        make_step(metrics, optimizer, *data.train.examples(slice(None)))
    expected = (math.log10(0.02 / first) + math.log10(0.02 / second)) / 2
    assert metrics.measure(False)["scale_invariant/log_effective_lr"] == pytest.approx(expected)
