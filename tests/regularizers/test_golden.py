"""Step-by-step agreement with the authors' released optimizers (grade A), in float64. A method only declares itself."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from wdlab.homogeneous import unit_paths
from wdlab.metrics.sparsity import active_units
from wdlab.regularizers import PathProx

GOLDEN = Path(__file__).parent.parent / "golden"
TOLERANCE = 1e-9


def layer(spec: dict) -> nn.Module:
    spec = dict(spec)
    return {"Linear": nn.Linear, "Conv2d": nn.Conv2d}[spec.pop("type")](**spec)


@pytest.mark.parametrize("vectors", sorted(GOLDEN.glob("pathprox_*.json")), ids=lambda path: path.stem)
def test_pathprox_agrees_with_the_released_steps(vectors, float64):
    golden = json.loads(vectors.read_text())
    layers = nn.ModuleDict({name: layer(spec) for name, spec in golden["layers"].items()})
    layers.load_state_dict({name: torch.tensor(value) for name, value in golden["init"].items()})
    pairs = [(layers[first], layers[second]) for first, second in golden["pairs"]]
    hyper = golden["hyper"]
    assert not hyper["regularize_bias"]
    optimizer = torch.optim.SGD(layers.parameters(), lr=hyper["lr"])
    other = [layers[name].weight for name in golden["other"]]
    PathProx(pairs, hyper["weight_decay"], other, balance=hyper["balance"]).attach(optimizer)
    parameters = dict(layers.named_parameters())
    assert len(golden["grads"]) == len(golden["expected"]) > 0
    for step, gradients in enumerate(golden["grads"]):
        for name, gradient in gradients.items():
            parameters[name].grad = torch.tensor(gradient)
        optimizer.step()
        for name, expected in golden["expected"][step].items():
            wanted = torch.tensor(expected)
            error = (parameters[name] - wanted).abs().max() / wanted.abs().max()
            assert error <= TOLERANCE, (step, name)
        paths = unit_paths(pairs)
        assert float(torch.cat(paths).sum()) == pytest.approx(golden["path_norm"][step], rel=TOLERANCE)
        assert 100 * float(active_units(paths)) == pytest.approx(golden["active_percent"][step], rel=TOLERANCE)
