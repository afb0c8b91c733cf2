"""torch's fused step: who gets it, that it changes rounding only, and what a resumed run makes of it."""

import copy
import json

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from tests.pretend_device import MISSING, NAME, waits
from tests.problem import problem, steps
from tests.regularizers.methods import METHODS
from wdlab import session
from wdlab.build import build_experiment, instantiate_node
from wdlab.engine import fused
from wdlab.optimizers import PAdam
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import CONFIGS, run_name

ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12}
NODES = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in (CONFIGS / "optimizer").glob("*.yaml")}
DEVICES = ["cpu", pytest.param(NAME, marks=pytest.mark.skipif(MISSING is not None, reason=str(MISSING)))]
LATE = ({"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "weight_decay": 0.1})


def optimizer_for(model: nn.Module, name: str, choice: bool, **options: object) -> torch.optim.Optimizer:
    """The optimizer of ``configs/optimizer/NAME.yaml``, with the choice of step made."""
    optimizer = instantiate_node(NODES[name] | options, params=list(model.parameters()))
    fused.choose_step(model, optimizer, choice)
    return optimizer


def furthest(model: nn.Module, other: nn.Module) -> float:
    """The largest difference between the weights of two models, where the weights are about 1 at most."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max((p - q).abs().max().item() for p, q in pairs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NODES)
def test_every_optimizer_of_a_config_takes_the_fused_step(name, device, monkeypatch):
    monkeypatch.setattr(fused, "DEVICES", fused.DEVICES | {NAME})
    model, inputs, labels = problem()
    plain = copy.deepcopy(model)
    model.to(device)
    there = inputs.to(device), labels.to(device)
    optimizer = optimizer_for(model, name, True)
    assert fused.uses_fused_step(optimizer) and all(group["fused"] is True for group in optimizer.param_groups)
    with waits() as found:
        steps(model, optimizer, *there, 3)
    assert not found
    steps(plain, optimizer_for(plain, name, False), inputs, labels, 3)
    assert furthest(model.cpu(), plain) < ROUNDING[torch.float32]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("name", NODES)
def test_its_steps_are_the_same_up_to_rounding(name, dtype):
    model, inputs, labels = problem(dtype=dtype)
    plain = copy.deepcopy(model)
    for m, choice in ((model, True), (plain, False)):
        optimizer = optimizer_for(m, name, choice)
        assert fused.uses_fused_step(optimizer) == choice
        steps(m, optimizer, inputs, labels, 5)
    assert furthest(model, plain) < ROUNDING[dtype]


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "padam", "adams"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_works_with_it(method, optimizer):
    if optimizer == "sgd" and method in ("l2 first", "l2 second"):
        pytest.skip("SGD has no such moment")
    model, inputs, labels = problem(dtype=torch.float64)
    plain = copy.deepcopy(model)
    for m, choice in ((model, True), (plain, False)):
        made = optimizer_for(m, optimizer, choice, **({"momentum": 0.9} if optimizer == "sgd" else {}))
        METHODS[method](m).attach(made)
        steps(m, made, inputs, labels, 5)
    assert furthest(model, plain) < ROUNDING[torch.float64]


def group_of(p: torch.Tensor, make=torch.optim.Adam, **options: object) -> bool:
    """Whether a parameter's group takes the fused step by choice."""
    model = nn.Module()
    model.p = nn.Parameter(p)
    optimizer = make([model.p], **options)
    given = optimizer.param_groups[0]["fused"]
    fused.choose_step(model, optimizer, True)
    assert optimizer.param_groups[0]["fused"] in (given, True)
    return fused.uses_fused_step(optimizer)


def test_what_was_given_stays_and_what_torch_cannot_do_is_left_alone(monkeypatch):
    p = torch.ones(4, 6)
    assert group_of(p) and group_of(p.t()) and group_of(p.half()) and group_of(p, fused=True)
    assert group_of(p, torch.optim.SGD, momentum=0.9) and group_of(p, torch.optim.SGD, dampening=0.5)
    assert group_of(torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last))
    for options in ({"fused": False}, {"foreach": True}, {"foreach": False}, {"differentiable": True}):
        assert not group_of(p, **options)
    assert not group_of(p, lr=torch.tensor(0.1)) and not group_of(p, PAdam, compiled=True)
    assert not group_of(p[:, ::2]) and not group_of(p[:1].expand(4, 6))  # torch goes through the memory from end to end
    assert not group_of(p.to(torch.complex64)) and not group_of(torch.ones(2, device="meta"))
    assert not group_of(p, torch.optim.SGD, momentum=0.9, dampening=0.5) and not group_of(p, torch.optim.Adagrad)
    monkeypatch.setattr(fused, "is_sharded", lambda p: True)
    assert not group_of(p)


def test_sparse_gradients_are_left_to_the_step_that_takes_them():
    model = nn.EmbeddingBag(5, 3, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fused.choose_step(model, optimizer, True)
    model(torch.tensor([[1, 2]])).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("options", LATE)
def test_a_first_gradient_may_come_late(options):
    model, inputs, labels = problem(dtype=torch.float64)
    plain, last = copy.deepcopy(model), {}
    for m, choice in ((model, True), (plain, False)):
        optimizer = optimizer_for(m, "sgd", choice, lr=0.1, **options)
        steps(m, optimizer, inputs, labels, 2, without_gradient=[m.layers[-1].bias])
        saved = optimizer.state_dict()
        for state in saved["state"].values():  # as a run leaves it that was not fused
            if not state["momentum_buffer"].any():
                state["momentum_buffer"] = None
        optimizer.load_state_dict(saved)
        steps(m, optimizer, inputs, labels, 2)
        last[choice] = m
    assert furthest(last[True], last[False]) < ROUNDING[torch.float64]


def sessions_of(config) -> list[dict]:
    return json.loads((RunDirectory.of(config).path / "provenance.json").read_text())["sessions"]


@pytest.mark.parametrize("choice", [["optimizer=adam"], ["optimizer=adams"], ["optimizer.momentum=0.9"]])
def test_a_resumed_run_follows_the_new_setting_and_reports_it(choice, compose, caplog, monkeypatch):
    options = [*choice, "regularizer=l2", "runtime.checkpoint_seconds=0"]
    whole, parts = compose(*options, runs_in="whole"), compose(*options, runs_in="parts")
    session.run(whole)
    found = []
    fit = session.loop.fit
    for how, stop_after in (("auto", 8), ("never", 12), ("never", 15), ("auto", None)):

        def fit_a_part(program, *rest, stop_after=stop_after):
            found.append(fused.uses_fused_step(program._optimizer))
            stop = iter(range(program.first + 1, 100))
            return fit(program, *rest[:-1], lambda: next(stop) == stop_after)

        parts.runtime.fused = how
        monkeypatch.setattr(session.loop, "fit", fit_a_part)
        caplog.clear()
        with caplog.at_level("WARNING", logger="wdlab"):
            if stop_after:
                with pytest.raises(KeyboardInterrupt):
                    session.run(parts)
            else:
                session.run(parts)
        changed = len(found) > 1 and found[-1] != found[-2]
        assert ("resumed on another machine or setting; equal up to rounding only" in caplog.text) == changed
    assert found == [s["fused"] for s in sessions_of(parts)] == [True, False, False, True]
    ends = [checkpoint.load(RunDirectory.of(config))["model"] for config in (whole, parts)]
    for key, value in ends[0].items():
        assert torch.allclose(ends[1][key], value, rtol=1e-4, atol=1e-5)


def test_the_choice_is_no_part_of_the_identity_and_a_given_step_is_recorded(compose):
    auto, never = compose("optimizer=adam"), compose("optimizer=adam", "runtime.fused=never")
    assert run_name(auto) == run_name(never)
    assert [build_experiment(c).provenance["fused"] for c in (auto, never)] == [True, False]
    given = (("+optimizer.fused=true", "runtime.fused=never", True), ("+optimizer.foreach=true", "runtime=cpu", False))
    for *overrides, expected in given:
        assert build_experiment(compose("optimizer=padam", *overrides)).provenance["fused"] == expected
