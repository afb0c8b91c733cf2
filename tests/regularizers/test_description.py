"""What is decayed can be read, and a strength that decays nothing is said."""

import warnings

import pytest
import torch
from torch import nn

from tests.regularizers.methods import METHODS, made, network
from wdlab.build import build_parts
from wdlab.errors import ConfigError
from wdlab.optimizers import SGDS, AdamS, PAdam
from wdlab.records.identity import compose_config
from wdlab.regularizers import L2, CoherenceGate, Early, PathProx, Regularizer, WarmUp
from wdlab.regularizers.description import describe_weight_decay


def test_a_summary_and_a_line_for_each_tensor():
    model = nn.Sequential(nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 10))
    assert L2.for_model(model, 1e-4).describe().splitlines() == [
        "L2: 2 tensors, 74,000 values, strength 0.0001, multiplied by the learning rate",
        "  0.weight         1000 x 64        64,000      0.0001",
        "  2.weight         10 x 1000        10,000      0.0001",
    ]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_describes_what_it_decays(name):
    model = network()
    summary, *lines = made(name, model).describe().splitlines()
    said = "strength 1" if name == "constrained" else "strength 0.02, multiplied by the learning rate"
    assert f": 3 tensors, 62 values, {said}" in summary
    assert [line.split()[0] for line in lines if line] == sorted(f"{i}.weight" for i in (0, 2, 4))


def test_names_are_those_of_named_parameters_and_groups():
    model = network()
    groups = [
        {"params": [("the first", model[0].weight)], "strength": 0.5},
        {"params": [model[2].weight, model[4].weight], "param_names": ["b", "c"]},
        {"params": model[0].bias, "strength": 0.0},
    ]
    summary, *lines = L2(groups, 0.1, over_time=Early(steps=5)).describe().splitlines()
    assert summary.endswith("62 values, strength 0.1 to 0.5, multiplied by the learning rate, over time Early(steps=5)")
    assert [line.split()[-1] for line in lines] == ["0.5", "0.1", "0.1"]
    assert [line.split("  ")[1].strip() for line in lines] == ["the first", "b", "c"]


def test_nothing_is_said_to_be_decayed_where_nothing_is():
    model = network()
    assert L2.for_model(model, 0.0).describe() == "L2: decays nothing, strength 0"
    assert Regularizer(model.parameters(), 0.1).describe() == "Regularizer: decays nothing"
    method = L2.for_model(model, 0.1)
    model[0].requires_grad_(False)
    assert method.describe().startswith("L2: 2 tensors, 32 values")
    assert "frozen: not decayed" in method.describe()
    model.requires_grad_(False)
    assert method.describe() == "L2: decays nothing, all its tensors are frozen"


def test_pairs_of_pathprox_are_told_from_other_weights():
    _, *lines = PathProx.for_model(network(), 0.1).describe().splitlines()
    assert [line.endswith("path-norm") for line in lines] == [True, True, False]


def test_optimizers_describe_their_own_weight_decay():
    model = network()
    model.bias = nn.Parameter(torch.zeros(7))
    named = list(model.named_parameters())
    assert AdamS(named, weight_decay=0.1).describe().startswith("AdamS: 7 tensors, 81 values, weight_decay 0.1, mult")
    assert "  2.weight  " in SGDS(named, weight_decay=0.1).describe()
    assert PAdam(named, weight_decay=0.1).describe().startswith("PAdam: 3 tensors, 62 values")
    assert SGDS(named).describe() == "SGDS: decays nothing, weight_decay 0"
    theirs = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    assert describe_weight_decay(theirs).startswith("AdamW: 7 tensors, 81 values, weight_decay 0.1")
    assert "  4.bias  " in describe_weight_decay(theirs, model)
    assert describe_weight_decay(torch.optim.SGD(named, lr=0.1)) == "SGD: decays nothing, weight_decay 0"


IDLE = {
    "early": (lambda model: {"over_time": Early(steps=0)}, r"Early\(steps=0\) is 0 in every step"),
    "epochs": (lambda model: {"over_time": [WarmUp(steps=3), Early(epochs=0)]}, r"Early\(epochs=0\) is 0 in every"),
    "gate": (lambda model: {"over_time": CoherenceGate(threshold=1.5)}, r"CoherenceGate\(running_mean >= 1.5\) is 0"),
}


@pytest.mark.parametrize("case", IDLE)
def test_a_strength_that_decays_nothing_is_refused_for_a_model(case):
    make, message = IDLE[case]
    model = network()
    for kind in (L2, PathProx):
        with pytest.raises(ValueError, match=rf"strength=0.1: would decay nothing, over_time=.*{message}"):
            kind.for_model(model, 0.1, **make(model))
        kind.for_model(model, 0.0, **make(model))


@pytest.mark.parametrize("scope", ["weights", "all"])
def test_a_frozen_model_has_nothing_to_decay(scope):
    with pytest.raises(ValueError, match=f"scope={scope}: nothing to decay, all of it is frozen in Sequential"):
        L2.for_model(network().requires_grad_(False), 0.1, scope=scope)


def test_it_is_said_once_at_attach():
    model = network().requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = L2(model.parameters(), 0.1)
    with pytest.warns(UserWarning, match="L2 decays nothing: all its parameters are frozen"):
        method.attach(optimizer).remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.attach(optimizer).remove()
        L2(model.parameters(), 0.0).attach(optimizer)
        L2(network().parameters(), 0.0)


def test_in_a_config_it_is_an_error_that_names_the_key():
    overrides = ["dataset=digits", "regularizer=l2", "regularizer/over_time=early", "regularizer.over_time.epochs=0"]
    with pytest.raises(ConfigError, match=r"regularizer\.strength=0\.\d+: would decay nothing, over_time=Early"):
        build_parts(compose_config(overrides))
