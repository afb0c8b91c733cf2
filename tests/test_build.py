"""The parts of a run: built by Hydra for the first time, directly after that, and the same both times."""

import pytest
import torch

from wdlab import build
from wdlab.errors import ConfigError
from wdlab.records.identity import compose_config

PARTS = ("model", "optimizer", "regularizer", "lr_schedule")


class Breaks(torch.nn.Module):
    def __init__(self, **_: object) -> None:
        raise RuntimeError("broken")


@pytest.fixture
def both(monkeypatch):
    """Call a function twice: with Hydra, and with all targets of the config known to be permitted."""

    def _both(function, config):
        monkeypatch.setattr(build, "_instantiated", set())
        by_hydra = function(config)
        monkeypatch.setattr(build, "_instantiated", {config[part]["_target_"] for part in PARTS})
        calls = []
        monkeypatch.setattr(build, "instantiate", lambda *_, **__: calls.append(1))
        directly = function(config)
        monkeypatch.undo()
        return by_hydra, directly, calls

    return _both


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer=adamw", "optimizer.betas=[0.8,0.9]", "regularizer=pathprox"),
        ("optimizer=sgd", "regularizer=none", "lr_schedule=cosine"),
        ("model=resnet8", "optimizer=padam", "regularizer=coherent"),
    ],
)
def test_parts_are_the_same_with_and_without_hydra(both, overrides):
    by_hydra, directly, calls = both(build.build_parts, compose_config(overrides))
    assert not calls
    states = by_hydra.model.state_dict(), directly.model.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0] | states[1])
    settings = [
        {key: value for key, value in parts.optimizer.param_groups[0].items() if key != "params"}
        for parts in (by_hydra, directly)
    ]
    assert settings[0] == settings[1] and repr(settings[0]) == repr(settings[1])
    assert by_hydra.regularizer.describe() == directly.regularizer.describe()


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.width=-1",),
        ("+model.colour=red",),
        ("optimizer.lr=-1",),
        ("regularizer=pnorm", "regularizer.p=-1"),
        ("model._target_=tests.test_build.Breaks", "model.name=Breaks", "~model.depth", "~model.width"),
    ],
)
def test_a_part_that_cannot_be_built_is_refused_in_the_same_words(both, overrides):
    def line(config) -> str:
        with pytest.raises(ConfigError) as refused:
            build.build_parts(config)
        return str(refused.value)

    by_hydra, directly, _ = both(line, compose_config(overrides))
    assert by_hydra == directly


def test_a_nested_part_is_always_built_by_hydra(both):
    *_, calls = both(
        lambda config: build.instantiate_node({"_target_": "builtins.dict", "inner": {"_target_": "builtins.list"}}),
        compose_config([]),
    )
    assert calls
