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
from wdlab.regularizers import (
    L2,
    CoherenceGate,
    Delayed,
    Early,
    Late,
    PathProx,
    Regularizer,
    ScheduleFactor,
    WarmUp,
)
from wdlab.regularizers.description import describe_weight_decay
from wdlab.schedules import Clock
from wdlab.validation import check_config


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
    said = "1, not" if name == "constrained" else "0.02,"
    assert f": 3 tensors, 62 values, strength {said} multiplied by the learning rate" in summary
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


NEVER = {  # factors that are 0 in each of the 10 steps of a run with 4 steps per epoch, and others that are not
    "late, in epochs": (
        [Late(epochs=2.5)],
        r"Late\(epochs=2.5\) is 0 in all 10 steps of the run, of which an epoch has 4",
    ),
    "late, in steps": ([Late(steps=10)], r"Late\(steps=10\) is 0 in all 10 steps"),
    "one after the other": ([Early(steps=3), Delayed(steps=3)], r"Early\(steps=3\) x Delayed\(steps=3\) is 0"),
    "a schedule": ([ScheduleFactor(lambda *_: 0.0)], r"ScheduleFactor\(<lambda>\) is 0"),
    "gated too": ([CoherenceGate(), Late(epochs=3)], r"over_time=Late\(epochs=3\) is 0"),
    "the last step": ([Late(steps=9)], None),
    "the first step": ([Early(steps=0.5)], None),
    "a step between": ([Early(steps=4), Delayed(steps=3)], None),
    "rising": ([WarmUp(epochs=100)], None),
}


@pytest.mark.parametrize("case", NEVER)
def test_a_run_that_ends_before_its_decay_begins_is_seen(case):
    factors, message = NEVER[case]
    model = network()
    method = L2.for_model(model, 0.1, over_time=factors)  # the length of the run is not known here
    method.clock = Clock(10, 4)
    if message is None:
        method.check_decays()
        assert "decays nothing" not in method.describe()
        return
    with pytest.raises(ValueError, match=rf"strength=0.1: would decay nothing, .*{message}.*; strength=0 is without"):
        method.check_decays()
    assert "decays nothing: over_time=" in method.describe()
    with pytest.warns(UserWarning, match=f"L2 decays nothing: .*{message}"):
        method.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    unknown = L2.for_model(model, 0.1, over_time=factors)
    unknown.clock = Clock(10, None)
    unknown.check_decays()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "regularizer=delayed",
            r"strength=0.0001: would decay nothing, over_time=Delayed\(epochs=5\) is 0 in all 20 steps",
        ),
        (
            "regularizer=l2 regularizer/over_time=late regularizer.over_time.epochs=1.2",
            r"strength=\S+: would decay nothing",
        ),
        ("regularizer=pathprox model.norm=batch", r": MLP has no pair Linear-ReLU-Linear"),
        (
            "regularizer=none regularizer.strength=0.1",
            r"strength=0.1: decays nothing with regularizer=none; give a method",
        ),
    ],
)
def test_a_run_that_would_decay_nothing_is_refused_before_training(compose, overrides, message):
    with pytest.raises(ConfigError, match=rf"^regularizer\.?{message}"), warnings.catch_warnings():
        warnings.simplefilter("error")  # one error, and no warning before it
        check_config(compose(*overrides.split()))


def test_a_decay_that_begins_in_the_last_step_is_accepted(compose):
    overrides = ("regularizer=l2", "regularizer/over_time=late", "regularizer.over_time.epochs=1.05")
    check_config(compose(*overrides))  # 20 steps, 18 of them an epoch
