"""The time scale of decay, and the steady state of scale-invariant weights: formulas, random walks, a small network."""

import json
import math

import numpy as np
import pytest
import torch

from tests.metrics.examples import make_step, random_images
from wdlab import session
from wdlab.analysis import declaration
from wdlab.metrics import Metrics, equilibrium
from wdlab.models import MLP
from wdlab.records.directory import RunDirectory
from wdlab.regularizers import L1, L2, DecoupledDecay, PNormDecay, Regularizer, ScheduledDecay

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
LR, STRENGTH = 0.1, 0.02

RATES = {  # method and optimizer, with the share of a weight that is taken away per update, in units of lr * strength
    "decoupled, SGD": (DecoupledDecay, {}, SGD, {"momentum": 0.9}, 1.0),
    "decoupled, Adam": (DecoupledDecay, {}, ADAM, {}, 1.0),
    "scheduled": (ScheduledDecay, {}, ADAM, {}, 1.0),
    "L2, SGD": (L2, {}, SGD, {}, 1.0),
    "L2, momentum": (L2, {}, SGD, {"momentum": 0.75}, 4.0),
    "L2, dampening": (L2, {}, SGD, {"momentum": 0.75, "dampening": 0.5}, 2.0),
    "L2, dampening alone": (L2, {}, SGD, {"dampening": 0.5}, 1.0),
    "L2, Nesterov": (L2, {}, SGD, {"momentum": 0.75, "nesterov": True}, 4.0),
    "L2, decoupled": (L2, {"route": "decoupled"}, ADAM, {}, 1.0),
    "L2, Adam": (L2, {}, ADAM, {}, None),
    "L2, separate": (L2, {"route": "separate"}, ADAM, {}, None),
    "L1": (L1, {}, SGD, {}, None),
    "p-norm": (PNormDecay, {"p": 0.8}, SGD, {}, None),
    "none": (Regularizer, {}, SGD, {}, None),
}


@pytest.mark.parametrize("case", RATES)
def test_the_rate_of_decay(case):
    kind, options, optimizer, settings, expected = RATES[case]
    weight = torch.nn.Parameter(torch.ones(3))
    method, group = kind([weight], STRENGTH, **options), optimizer([weight], lr=LR, **settings).param_groups[0]
    rate = equilibrium.rate(method, group, LR, STRENGTH)
    assert rate is None if expected is None else rate == pytest.approx(expected * LR * STRENGTH)
    assert equilibrium.rate(method, group, LR, 0.0) is equilibrium.rate(method, group, 0.0, STRENGTH) is None
    assert equilibrium.rate(method, group, math.inf, STRENGTH) is None


@pytest.mark.parametrize("case", [case for case, (*_, expected) in RATES.items() if expected])
def test_a_weight_without_a_gradient_falls_by_that_rate(case):
    kind, options, optimizer, settings, _ = RATES[case]
    if kind is ScheduledDecay:
        pytest.skip("is not decayed where there are no gradients")
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    method, updater = kind([weight], STRENGTH, **options), optimizer([weight], lr=1e-3, **settings)
    steps, weight.grad = 30_000, torch.zeros_like(weight)
    with method.attach(updater):
        for step in range(steps):
            if step == steps // 2:
                middle = weight[0].item()
            updater.step()
    rate = equilibrium.rate(method, updater.param_groups[0], 1e-3, STRENGTH)
    assert math.log(middle / weight[0].item()) / (steps / 2) == pytest.approx(rate, rel=1e-3)


def test_the_time_scale_is_in_epochs_and_left_out_where_there_is_none():
    weight = torch.nn.Parameter(torch.ones(3))
    group, line = SGD([weight], lr=LR).param_groups[0], {"lr": 0.05, "strength": 0.01, "norm/weight_l2": 1.0}
    method = DecoupledDecay([weight], 1.0)  # the line has the strength in force
    assert equilibrium.of_line(method, group, 40, line) == {"decay/timescale_epochs": pytest.approx(50.0)}
    assert equilibrium.of_line(method, group, 40, line | {"strength": 0.0}) == {}
    values = equilibrium.of_line(method, group, 40, line | {"scale_invariant/rotation": 0.1})
    assert values["scale_invariant/rotation_over_predicted"] == pytest.approx(0.1 / math.sqrt(2 * 0.05 * 0.01))


def test_the_rotation_of_the_papers():
    weight, momentum, beta = torch.nn.Parameter(torch.ones(3)), 0.9, 0.8
    group = SGD([weight], lr=LR, momentum=momentum).param_groups[0]
    rate = equilibrium.rate(L2([weight], STRENGTH), group, LR, STRENGTH)
    expected = math.sqrt(2 * LR * STRENGTH / (1 + momentum))
    assert equilibrium.predicted_rotation(group, rate) == pytest.approx(expected)
    group = ADAMW([weight], lr=LR, betas=(beta, 0.99), weight_decay=0.0).param_groups[0]
    expected = math.sqrt(2 * LR * STRENGTH * (1 - beta) / (1 + beta))
    assert equilibrium.predicted_rotation(group, LR * STRENGTH) == pytest.approx(expected)
    assert equilibrium.predicted_rotation(torch.optim.RMSprop([weight]).param_groups[0], 0.1) is None


def test_fig12_draws_the_same_prediction():
    formula = declaration.read("fig12", "quick")["derived"]["of_predicted"].replace("`", "")
    value = eval(formula.replace("scale_invariant/angular_update", "1"), {"lr": LR, "strength": STRENGTH})
    weight = torch.nn.Parameter(torch.ones(3))
    group = SGD([weight], lr=LR, momentum=0.9).param_groups[0]
    rate = equilibrium.rate(L2([weight], STRENGTH), group, LR, STRENGTH)
    assert 1 / value == pytest.approx(equilibrium.predicted_rotation(group, rate))


WALKS = {
    "SGD": (DecoupledDecay, SGD, {}),
    "SGD with momentum, L2": (L2, SGD, {"momentum": 0.9}),
    "SGD with momentum, decoupled": (DecoupledDecay, SGD, {"momentum": 0.8}),
    "SGD with dampening": (L2, SGD, {"momentum": 0.8, "dampening": 0.5}),
    "SGD with Nesterov's momentum": (L2, SGD, {"momentum": 0.8, "nesterov": True}),
    "AdamW": (DecoupledDecay, ADAM, {"betas": (0.8, 0.99)}),
}


@pytest.mark.parametrize("case", WALKS)
def test_a_random_walk_turns_as_predicted(case):
    """The gradients are perpendicular to the weight, as long as one over its norm, and otherwise random."""
    kind, optimizer, settings = WALKS[case]
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(2000, dtype=torch.float64) / 40)
    lr, strength = 1e-2, 0.5
    method, updater = kind([weight], strength), optimizer([weight], lr=lr, **settings)
    squares = []
    with method.attach(updater):
        for _ in range(1500):
            old = weight.detach().clone()
            noise = torch.randn_like(old)
            noise -= old * torch.dot(noise, old) / torch.dot(old, old)
            weight.grad = noise / noise.norm() / old.norm()
            updater.step()
            cosine = torch.dot(old, weight.detach()) / old.norm() / weight.detach().norm()
            squares.append(torch.acos(cosine).item() ** 2)
    predicted = equilibrium.predicted_rotation(
        updater.param_groups[0], equilibrium.rate(method, updater.param_groups[0], lr, strength)
    )
    assert math.sqrt(np.mean(squares[750:])) == pytest.approx(predicted, rel=0.03)


NETWORKS = {  # method, optimizer with its settings, learning rate, strength
    "SGD": (DecoupledDecay, SGD, {}, 0.5, 0.01),
    "SGD, a smaller rate": (DecoupledDecay, SGD, {}, 0.2, 0.02),
    "SGD with momentum": (L2, SGD, {"momentum": 0.9}, 0.05, 0.01),
    "AdamW": (DecoupledDecay, ADAM, {}, 0.01, 1.0),
}


def trained(case: str, seed: int, steps: int = 1500) -> dict[str, np.ndarray]:
    """Every metric of the second half of a training on random labels, at every tenth step."""
    kind, optimizer, settings, lr, strength = NETWORKS[case]
    torch.set_num_threads(1)  # several threads take longer for so small a network
    torch.manual_seed(seed)
    data, model = random_images(classes=4, count=200), MLP((1, 4, 4), 4, width=16, depth=3, norm="batch")
    method, updater = kind.for_model(model, strength), optimizer(model.parameters(), lr=lr, **settings)
    metrics, lines = Metrics(model, data, method), []
    with method.attach(updater):
        for step in range(steps):
            inputs, labels = data.train.examples(torch.randint(200, (20,)))
            updater.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            if step < steps // 2 or step % 10:
                updater.step()
                continue
            metrics.before_step()
            updater.step()
            metrics.after_step()
            line = metrics.measure(whole_splits=False) | {"lr": lr, "strength": method.strength_in_force}
            lines.append(line | equilibrium.of_line(method, updater.param_groups[0], 10, line))
    return {name: np.array([line[name] for line in lines]) for name in lines[0]}


def root_mean_square(values: np.ndarray) -> float:
    return math.sqrt(np.mean(values**2))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", NETWORKS)
def test_a_normalized_network_turns_as_predicted(case, seed):
    """Over ten seeds the ratio is between 0.97 and 1.06, also with AVX2."""
    metrics = trained(case, seed)
    assert root_mean_square(metrics["scale_invariant/rotation_over_predicted"]) == pytest.approx(1.0, rel=0.1)
    if case.startswith("SGD") and "momentum" not in case:
        *_, lr, strength = NETWORKS[case]
        ratio = root_mean_square(metrics["gradient/over_weights"])
        assert ratio == pytest.approx(math.sqrt(2 * strength / lr), rel=0.2)


def test_rotation_and_gradient_over_weights_are_those_of_the_normalized_layers():
    torch.manual_seed(0)
    data, model = random_images(), MLP((1, 4, 4), 3, width=5, depth=3, norm="batch")
    method, updater = DecoupledDecay.for_model(model, STRENGTH), SGD(model.parameters(), lr=LR)
    metrics, layers = Metrics(model, data, method), [m.weight for m in model.layers if isinstance(m, torch.nn.Linear)]
    old = [w.detach().double().flatten() for w in layers]
    with method.attach(updater):
        make_step(metrics, updater, *data.train.examples(slice(None)))
        line = metrics.measure(whole_splits=False)
    new = [w.detach().double().flatten() for w in layers]
    angles = [torch.acos(torch.dot(a, b) / a.norm() / b.norm()).item() for a, b in zip(old, new, strict=True)]
    ratios = [(w.grad.norm() / w0.norm()).item() for w, w0 in zip(layers, old, strict=True)]
    assert line["scale_invariant/rotation"] == pytest.approx(root_mean_square(np.array(angles[:-1])), rel=1e-4)
    assert line["gradient/over_weights"] == pytest.approx(root_mean_square(np.array(ratios[:-1])), rel=1e-5)
    assert angles[-1] != pytest.approx(root_mean_square(np.array(angles[:-1])), rel=0.1)  # the last is not normalized


@pytest.mark.parametrize("overrides", [("regularizer=l2",), ("regularizer=scheduled", "optimizer=adam")])
def test_a_run_logs_the_time_scale_of_the_strength_in_force(compose, overrides):
    config = compose(
        "model.norm=batch",
        *overrides,
        "regularizer.strength=0.01",
        "regularizer/over_time=early",
        "regularizer.over_time.epochs=null",
        "regularizer.over_time.steps=10",
    )
    session.run(config)
    first, middle, last = [json.loads(line) for line in RunDirectory.of(config).metrics.read_text().splitlines()]
    scale = middle["decay/timescale_epochs"]
    assert scale == pytest.approx(middle["epoch"] / middle["step"] / middle["lr"] / middle["strength"])
    assert middle["scale_invariant/rotation_over_predicted"] > 0 and "scale_invariant/rotation" not in first
    assert "decay/timescale_epochs" not in last and "scale_invariant/rotation_over_predicted" not in last
