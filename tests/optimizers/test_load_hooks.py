"""Hooks around ``load_state_dict`` of the drop-in optimizers see, change and follow what torch's would."""

import copy

import pytest
import torch
from torch import nn

from wdlab.optimizers import SGDS, AdamS, PAdam

OPTIMIZERS = {"adams": (AdamS, {}), "sgds": (SGDS, {"momentum": 0.9}), "padam": (PAdam, {})}
every = pytest.mark.parametrize("name", OPTIMIZERS)


def trained(name, model, params, count=3):
    make, options = OPTIMIZERS[name]
    optimizer = make(params, lr=0.01, weight_decay=0.1, **options)
    steps(model, optimizer, count)
    return optimizer


def steps(model, optimizer, count=3):
    torch.manual_seed(1)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def by_name(optimizer, state):
    """A hook that brings what was saved into the optimizer's own order, as torch's documentation has it."""
    (group,), names = state["param_groups"], optimizer.param_groups[0]["param_names"]
    moved = {i: state["state"][group["param_names"].index(name)] for i, name in enumerate(names)}
    return {"state": moved, "param_groups": [{**group, "param_names": names, "params": list(range(len(names)))}]}


@every
def test_a_state_is_loaded_by_name(name):
    model = network()
    old = trained(name, model, model.named_parameters())
    other = copy.deepcopy(model)
    new = trained(name, other, list(other.named_parameters())[::-1], count=0)
    new.register_load_state_dict_pre_hook(by_name)
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert str(new.state[q]) == str(old.state[p])
    steps(model, old)
    steps(other, new)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_hook_that_changes_the_state_in_place_is_followed():
    model = network()
    old = trained("adams", model, model.parameters())

    def double(_, state):
        state["state"] = {
            i: {**values, "mean_square": 2 * values["mean_square"]} for i, values in state["state"].items()
        }

    new = trained("adams", model, model.parameters(), count=0)
    new.register_load_state_dict_pre_hook(double)
    new.load_state_dict(old.state_dict())
    for p in model.parameters():
        assert new.state[p]["mean_square"] == 2 * old.state[p]["mean_square"]


def test_post_hooks_see_and_may_change_the_mean_squares():
    model = network().bfloat16()
    model.float()
    old = trained("adams", model, model.parameters())
    new = trained("adams", model, model.parameters(), count=0)
    seen = []

    def look(optimizer):
        seen.append([optimizer.state[p]["mean_square"] for p in model.parameters()])
        for p in model.parameters():
            optimizer.state[p]["mean_square"] = 1.0

    new.register_load_state_dict_post_hook(look)
    new.load_state_dict(old.state_dict())
    assert seen == [[old.state[p]["mean_square"] for p in model.parameters()]]
    assert all(new.state[p]["mean_square"] == 1.0 for p in model.parameters())


def test_no_hook_of_ours_stays():
    model = network()
    optimizer = trained("adams", model, model.parameters())
    with pytest.raises(ValueError):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    optimizer.load_state_dict(optimizer.state_dict())
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    assert not optimizer._optimizer_load_state_dict_post_hooks


def test_a_mean_square_saved_as_a_tensor_keeps_its_precision():
    model = network().bfloat16()
    make, _ = OPTIMIZERS["adams"]
    old = make(model.parameters(), lr=0.01)
    model(torch.randn(8, 6, dtype=torch.bfloat16)).square().mean().backward()
    old.step()
    state = old.state_dict()
    exact = [values["mean_square"] for values in state["state"].values()]
    for values in state["state"].values():
        values["mean_square"] = torch.tensor(values["mean_square"], dtype=torch.float64)
    new = make(model.parameters(), lr=0.01)
    new.load_state_dict(state)
    assert [new.state[p]["mean_square"] for p in model.parameters()] == exact
