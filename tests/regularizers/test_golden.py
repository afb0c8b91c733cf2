"""Step-by-step agreement with the authors' released optimizers (grade A), in float64.

The vectors lie beside the checkout, and in ``tests/released``. A method only declares itself in ``METHODS``: how it is
built from the vectors of a parameter list, as a drop-in optimizer and attached to torch's own, or from the vectors of a
network (PathProx).
"""

import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

from wdlab.homogeneous import unit_path_norms
from wdlab.metrics.norms import as_rows
from wdlab.metrics.sparsity import active_unit_share
from wdlab.optimizers import SGDS, AdamS, PAdam
from wdlab.records.identity import PROJECT
from wdlab.regularizers import ConstrainedRegularization, PathProx, PNormDecay, ScheduledDecay

GOLDEN = PROJECT.parent / "shared" / "golden"
VECTORS = sorted([*GOLDEN.glob("*.json"), *(PROJECT / "tests" / "released").glob("*.json")])
TOLERANCE = 1e-9


def drop_in(make: Callable, strength: str = "weight_decay") -> Callable:
    """A drop-in optimizer, with a group without decay."""

    def build(parameters, golden, lr):
        hyper = dict(golden["hyper"])
        decay = hyper.pop(strength)
        groups = [
            {"params": [parameters[i] for i in group["params"]], "weight_decay": decay if group["decay"] else 0.0}
            for group in golden["groups"]
        ]
        return make(groups, lr=lr, **hyper)

    return build


def attached(make: Callable, base: Callable, *, own: tuple[str, ...] = (), strength: str = "weight_decay") -> Callable:
    """A regularizer on a torch optimizer; ``own`` are the settings that are the regularizer's."""

    def build(parameters, golden, lr):
        hyper = dict(golden["hyper"])
        decay = hyper.pop(strength)
        options = {key: hyper.pop(key) for key in own}
        optimizer = base(parameters, lr=lr, **hyper)
        decayed = [parameters[i] for group in golden["groups"] if group["decay"] for i in group["params"]]
        make(decayed, decay, **options).attach(optimizer)
        return optimizer

    return build


def pathprox(layers, golden, compiled=False):
    hyper = golden["hyper"]
    optimizer = torch.optim.SGD(layers.parameters(), lr=hyper["lr"])
    pairs = [(layers[first], layers[second]) for first, second in golden["pairs"]]
    other = [layers[name].weight for name in golden["other"]]
    options = {key: hyper[key] for key in ("balance", "regularize_bias")}
    PathProx(pairs, hyper["weight_decay"], other, **options, compiled=compiled).attach(optimizer)
    return optimizer, pairs


METHODS = {
    "AdamS": ("adams", drop_in(AdamS)),
    "AdamS, fused": ("adams", drop_in(lambda *a, **k: AdamS(*a, **k, fused=True))),
    "ScheduledDecay on Adam": ("adams", attached(ScheduledDecay, torch.optim.Adam)),
    "SGDS": ("sgds", drop_in(SGDS)),
    "ScheduledDecay on SGD": ("sgds", attached(ScheduledDecay, torch.optim.SGD)),
    "PAdam": ("padam", drop_in(PAdam, "lambda_p")),
    "PAdam, compiled": ("padam", drop_in(lambda *a, **k: PAdam(*a, **k, compiled=True), "lambda_p")),
    "ConstrainedRegularization on Adam": (
        "cpr",
        attached(ConstrainedRegularization, torch.optim.Adam, own=("kappa", "warm_start", "every"), strength="mu"),
    ),
    "PNormDecay on Adam": ("padam", attached(PNormDecay, torch.optim.Adam, own=("p",), strength="lambda_p")),
}
NETWORK_METHODS = {
    "PathProx": ("pathprox", pathprox),
    "PathProx, compiled": ("pathprox", lambda *a: pathprox(*a, compiled=True)),
}


def cases(methods) -> list:
    return [
        pytest.param(build, path, id=f"{name}-{path.stem}")
        for name, (prefix, build) in methods.items()
        for path in VECTORS
        if path.stem.startswith(f"{prefix}_")
    ]


def check(value: torch.Tensor, expected: list, step: int) -> None:
    wanted = torch.tensor(expected)
    assert (value - wanted).abs().max() <= TOLERANCE * wanted.abs().max(), step


@pytest.mark.parametrize(("build", "vectors"), cases(METHODS))
def test_agrees_with_the_released_steps(build, vectors, float64):
    golden = json.loads(vectors.read_text())
    parameters = [torch.tensor(value, requires_grad=True) for value in golden["init"]]
    optimizer = build(parameters, golden, golden["lr"][0])
    assert len(golden["grads"]) == len(golden["expected"]) == len(golden["lr"]) > 0
    for step, gradients in enumerate(golden["grads"]):
        for group in optimizer.param_groups:
            group["lr"] = golden["lr"][step]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
        for parameter, expected in zip(parameters, golden["expected"][step], strict=True):
            check(parameter, expected, step)


def layer(spec: dict) -> nn.Module:
    spec = dict(spec)
    return {"Linear": nn.Linear, "Conv2d": nn.Conv2d}[spec.pop("type")](**spec)


@pytest.mark.parametrize(("build", "vectors"), cases(NETWORK_METHODS))
def test_agrees_with_the_released_steps_on_a_network(build, vectors, float64):
    golden = json.loads(vectors.read_text())
    layers = nn.ModuleDict({name: layer(spec) for name, spec in golden["layers"].items()})
    layers.load_state_dict({name: torch.tensor(value) for name, value in golden["init"].items()})
    optimizer, pairs = build(layers, golden)
    parameters = dict(layers.named_parameters())
    assert len(golden["grads"]) == len(golden["expected"]) > 0
    for step, gradients in enumerate(golden["grads"]):
        for name, gradient in gradients.items():
            parameters[name].grad = torch.tensor(gradient)
        optimizer.step()
        for name, expected in golden["expected"][step].items():
            check(parameters[name], expected, step)
        paths = unit_path_norms(pairs)
        assert float(torch.cat(paths).sum()) == pytest.approx(golden["path_norm"][step], rel=TOLERANCE)
        active = 100 * float(active_unit_share(as_rows(paths)))
        assert active == pytest.approx(golden["active_percent"][step], rel=TOLERANCE)


def test_every_vector_has_a_method():
    prefixes = {prefix for prefix, _ in (*METHODS.values(), *NETWORK_METHODS.values())}
    assert {path.stem.split("_")[0] for path in VECTORS} <= prefixes


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"needs the released optimizers' vectors in {GOLDEN}")
def test_every_method_has_a_vector():
    prefixes = {prefix for prefix, _ in (*METHODS.values(), *NETWORK_METHODS.values())}
    assert {path.stem.split("_")[0] for path in VECTORS} == prefixes
