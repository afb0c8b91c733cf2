"""The drop-in optimizers: torch's conventions to the letter, closed forms and limits of their decay."""

import copy
import math
import pickle
import sys

import pytest
import torch
from torch import nn

from tests.problem import close, problem, same, steps, through_a_file, zero_gradients
from wdlab.optimizers import SGDS, AdamS, PAdam
from wdlab.regularizers import L2, DecoupledDecay, PNormDecay, ScheduledDecay

NESTEROV = {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
MAKE = {
    "AdamS": lambda p, **k: AdamS(p, **{"lr": 1e-2, "weight_decay": 0.01} | k),
    "AdamS amsgrad": lambda p, **k: AdamS(p, **{"lr": 1e-2, "weight_decay": 0.01, "amsgrad": True} | k),
    "SGDS": lambda p, **k: SGDS(p, **{"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.01} | k),
    "SGDS nesterov": lambda p, **k: SGDS(
        p, **{"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01} | k
    ),
    "PAdam": lambda p, **k: PAdam(p, **{"lr": 1e-2, "weight_decay": 0.01} | k),
    "PAdam p=1": lambda p, **k: PAdam(p, **{"lr": 1e-2, "weight_decay": 0.01, "p": 1} | k),
    "PAdam compiled": lambda p, **k: PAdam(p, **{"lr": 1e-2, "weight_decay": 0.01, "compiled": True} | k),
}
BASE = {
    "AdamS": lambda p, **k: torch.optim.Adam(p, lr=1e-2, **k),
    "AdamS amsgrad": lambda p, **k: torch.optim.Adam(p, lr=1e-2, amsgrad=True, **k),
    "SGDS": lambda p, **k: torch.optim.SGD(p, lr=1e-2, momentum=0.9, **k),
    "SGDS nesterov": lambda p, **k: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, **k),
    "PAdam": lambda p, **k: torch.optim.Adam(p, lr=1e-2, **k),
    "PAdam p=1": lambda p, **k: torch.optim.Adam(p, lr=1e-2, **k),
}
IMPLEMENTATIONS = ({}, {"foreach": False}, {"foreach": True}, {"fused": True})
every = pytest.mark.parametrize("name", MAKE)
every_eager = pytest.mark.parametrize("name", BASE)
every_implementation = pytest.mark.parametrize("how", IMPLEMENTATIONS, ids=str)


@every_eager
@every_implementation
def test_without_decay_it_is_bit_identical_to_the_base_optimizer(name, how):
    model, inputs, labels = problem()
    twin = copy.deepcopy(model)
    ours, theirs = MAKE[name](model.parameters(), weight_decay=0.0, **how), BASE[name](twin.parameters(), **how)
    steps(model, ours, inputs, labels, 5)
    steps(twin, theirs, inputs, labels, 5)
    assert same(model, twin)


def test_compiled_padam_without_decay_is_adam():
    model, inputs, labels = problem(dtype=torch.float64)
    twin = copy.deepcopy(model)
    steps(model, MAKE["PAdam compiled"](model.parameters(), weight_decay=0.0), inputs, labels, 5)
    steps(twin, BASE["PAdam"](twin.parameters()), inputs, labels, 5)
    assert close(model, twin, rtol=1e-9, atol=1e-12)


@every_eager
def test_all_implementations_agree(name):
    outcomes = []
    ways = [*IMPLEMENTATIONS, {"compiled": True}] if name.startswith("PAdam") else IMPLEMENTATIONS
    for how in ways:
        model, inputs, labels = problem(dtype=torch.float64)
        steps(model, MAKE[name](model.parameters(), **how), inputs, labels, 5)
        outcomes.append(model)
    assert all(close(outcomes[0], other, rtol=1e-9, atol=1e-12) for other in outcomes[1:])


@every
def test_state_round_trip_through_a_file_is_exact(name):
    model, inputs, labels = problem()
    optimizer = MAKE[name](model.parameters())
    steps(model, optimizer, inputs, labels, 4)
    twin = copy.deepcopy(model)
    resumed = MAKE[name](twin.parameters(), lr=0.5, weight_decay=0.3)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    steps(model, optimizer, inputs, labels, 4)
    steps(twin, resumed, inputs, labels, 4)
    assert same(model, twin)
    assert resumed.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


@every
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_copy_goes_on_alike(name, copied):
    model, inputs, labels = problem()
    optimizer = MAKE[name](model.parameters())
    steps(model, optimizer, inputs, labels, 3)
    twin = copied(optimizer)
    for optimizer_ in (optimizer, twin):
        for group in optimizer_.param_groups:
            for i, p in enumerate(group["params"]):
                p.grad = torch.full_like(p, 0.1 * (i + 1))
        optimizer_.step()
    pairs = zip(optimizer.param_groups[0]["params"], twin.param_groups[0]["params"], strict=True)
    assert all(p is not q and torch.equal(p, q) for p, q in pairs)


def test_adams_takes_the_state_of_a_torch_adam():
    """Its scalar averages are then means of Adam's second moments."""
    model, inputs, labels = problem(dtype=torch.float64)
    reference, adam = AdamS(model.parameters(), weight_decay=0.0), None
    twin = copy.deepcopy(model)
    adam = torch.optim.Adam(twin.parameters())
    steps(model, reference, inputs, labels, 4)
    steps(twin, adam, inputs, labels, 4)
    resumed = AdamS(twin.parameters())
    state = adam.state_dict()
    resumed.load_state_dict({"state": state["state"], "param_groups": resumed.state_dict()["param_groups"]})
    reference.param_groups[0]["weight_decay"] = resumed.param_groups[0]["weight_decay"]
    steps(model, reference, inputs, labels, 3)
    steps(twin, resumed, inputs, labels, 3)
    assert close(model, twin, rtol=1e-12, atol=1e-14)


def test_the_scalar_average_is_the_mean_of_the_second_moment():
    model, inputs, labels = problem(dtype=torch.float64)
    optimizer = AdamS(model.parameters(), betas=(0.9, 0.95))
    for _ in range(10):
        steps(model, optimizer, inputs, labels, 1)
        for state in optimizer.state.values():
            assert state["mean_square"] == pytest.approx(state["exp_avg_sq"].mean().item(), rel=1e-12)
            assert state["updates"] == state["step"]


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adams_decays_by_the_published_rule(amsgrad, float64):
    """One parameter list, V over all of it; written out in plain arithmetic."""
    torch.manual_seed(0)
    w = [torch.randn(3, 4).requires_grad_(), torch.randn(5).requires_grad_()]
    mine = [x.detach().clone() for x in w]
    optimizer = AdamS(
        [{"params": w[0], "weight_decay": 0.1, "lr": 0.02}, {"params": w[1], "weight_decay": 0.0}],
        lr=0.01,
        amsgrad=amsgrad,
    )
    m, v, v_max = ([torch.zeros_like(x) for x in mine] for _ in range(3))
    for t in range(1, 6):
        for p in w:
            p.grad = torch.randn_like(p) * 10.0 ** (-t)
        optimizer.step()
        for i, p in enumerate(w):
            m[i] = 0.9 * m[i] + 0.1 * p.grad
            v[i] = 0.999 * v[i] + 0.001 * p.grad**2
            v_max[i] = torch.maximum(v_max[i], v[i])
        second = [x / (1 - 0.999**t) for x in (v_max if amsgrad else v)]
        mean = sum(x.sum() for x in second) / sum(x.numel() for x in second)
        for i, (decay, lr) in enumerate([(0.1, 0.02), (0.0, 0.01)]):
            mine[i] *= 1 - decay * lr / mean.sqrt()
            mine[i] -= lr * (m[i] / (1 - 0.9**t)) / (second[i].sqrt() + 1e-8)
            assert torch.allclose(w[i], mine[i], rtol=1e-12, atol=1e-14)


def test_sgds_decays_by_the_published_factor(float64):
    w = torch.tensor([2.0, -3.0], requires_grad=True)
    optimizer = SGDS([w], lr=0.1, momentum=0.8, dampening=0.5, weight_decay=0.04)
    zero_gradients(optimizer)
    optimizer.step()
    factor = 1 - 0.1 * 0.04 * 0.5 / 0.2
    assert w.tolist() == pytest.approx([2 * factor, -3 * factor], rel=1e-15)


def test_padam_with_p_2_is_decoupled_decay_by_its_own_factor(float64):
    w, bias = torch.randn(3, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    before, old_bias = w.detach().clone(), bias.detach().clone()
    optimizer = PAdam([w, bias], lr=0.1, weight_decay=0.03, p=2)
    zero_gradients(optimizer)
    optimizer.step()
    assert torch.allclose(w, before / (1 + 2 * 0.1 * 0.03), rtol=1e-15)
    assert torch.equal(bias, old_bias)  # fewer than two dimensions


@every
def test_groups_have_values_of_their_own(name):
    model, inputs, labels = problem(dtype=torch.float64)
    twin = copy.deepcopy(model)
    layers, twins = model.layers, twin.layers
    quiet = [*layers[1].parameters(), *layers[3].parameters()]
    loud = [*layers[5].parameters(), *layers[7].parameters()]
    optimizer = MAKE[name]([{"params": quiet, "weight_decay": 0.0, "lr": 0.0}, {"params": loud, "weight_decay": 0.5}])
    steps(model, optimizer, inputs, labels, 2)
    unchanged = zip(
        (*layers[1].parameters(), *layers[3].parameters()),
        (*twins[1].parameters(), *twins[3].parameters()),
        strict=True,
    )
    assert all(torch.equal(p, q) for p, q in unchanged)
    assert not torch.equal(layers[5].weight, twins[5].weight)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.5]


def test_padam_groups_have_a_p_of_their_own(float64):
    w = [torch.full((2, 2), 0.5, requires_grad=True) for _ in range(2)]
    optimizer = PAdam([{"params": w[0], "p": 1.0}, {"params": w[1]}], lr=0.1, weight_decay=0.2, p=2)
    zero_gradients(optimizer)
    optimizer.step()
    assert w[0].flatten().tolist() == pytest.approx([0.5 / (1 + 0.1 * 0.2 / 0.5)] * 4)
    assert w[1].flatten().tolist() == pytest.approx([0.5 / (1 + 2 * 0.1 * 0.2)] * 4)


@every
def test_missing_and_frozen_gradients_are_left_alone(name):
    model, inputs, labels = problem()
    model.layers[1].weight.requires_grad_(False)
    optimizer = MAKE[name](model.parameters())
    missing = list(model.layers[5].parameters())
    before = [p.detach().clone() for p in (model.layers[1].weight, *missing)]
    steps(model, optimizer, inputs, labels, 3, without_gradient=missing)
    assert all(torch.equal(p, q) for p, q in zip((model.layers[1].weight, *missing), before, strict=True))
    steps(model, optimizer, inputs, labels, 3)  # bias corrections now differ between parameters
    assert all(torch.isfinite(p).all() for p in model.parameters())
    before = copy.deepcopy(model)
    optimizer.zero_grad()
    optimizer.step()
    assert same(model, before)


@every
def test_a_group_added_later_is_trained_too(name):
    model, inputs, labels = problem()
    optimizer = MAKE[name](model.layers[1].parameters())
    steps(model, optimizer, inputs, labels, 2)
    optimizer.add_param_group({"params": [p for layer in model.layers[3:] for p in layer.parameters()]})
    before = copy.deepcopy(model)
    steps(model, optimizer, inputs, labels, 2)
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))


@every
def test_a_closure_and_a_scheduler_work_as_in_torch(name):
    model, inputs, labels = problem()
    twin = copy.deepcopy(model)
    ours, theirs = MAKE[name](model.parameters()), MAKE[name](twin.parameters())
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 4) for o in (ours, theirs)]
    seen = []

    def closure():
        assert torch.is_grad_enabled()
        ours.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    for _ in range(4):
        seen.append(ours.step(closure).item())
        steps(twin, theirs, inputs, labels, 1)
        for scheduler in schedulers:
            scheduler.step()
    assert same(model, twin) and all(map(math.isfinite, seen))
    assert ours.param_groups[0]["lr"] < 1e-2


@every
def test_hooks_run_once_in_a_step(name):
    torch.optim.Adam(
        [torch.zeros(1)]
    )  # an instance of the base class makes torch put its hooks into the base class too
    torch.optim.SGD([torch.zeros(1)], lr=0.1)
    model, inputs, labels = problem()
    optimizer, calls = MAKE[name](model.parameters()), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    steps(model, optimizer, inputs, labels, 2)
    assert calls == ["before", "after"] * 2


@every
def test_a_regularizer_attaches_to_it_as_to_any_optimizer(name):
    model, inputs, labels = problem()
    alone = copy.deepcopy(model)
    ours, theirs = MAKE[name](model.parameters()), MAKE[name](alone.parameters())
    with L2.for_model(model, 0.1).attach(ours):
        steps(model, ours, inputs, labels, 2)
    steps(alone, theirs, inputs, labels, 2)
    assert not same(model, alone)


@every
def test_an_interrupted_step_leaves_the_decay_as_the_user_set_it(name, monkeypatch):
    if "compiled" in name:
        pytest.skip("has no base step")
    model, inputs, labels = problem()
    optimizer = MAKE[name](model.parameters())

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    module = sys.modules["torch.optim.sgd" if name.startswith("SGDS") else "torch.optim.adam"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "sgd" if name.startswith("SGDS") else "adam", interrupted)
        steps(model, optimizer, inputs, labels, 1)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01


@every
def test_under_a_gradient_scaler_gradients_are_unscaled_first(name):
    model, inputs, labels = problem()
    twin = copy.deepcopy(model)
    options = {} if "compiled" in name else {"fused": True}
    ours, plain = (MAKE[name](m.parameters(), **options) for m in (model, twin))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):
        ours.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(inputs), labels)).backward()
        scaler.step(ours)
        scaler.update()
    steps(twin, plain, inputs, labels, 3)
    assert close(model, twin, rtol=1e-4, atol=1e-5)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrower_weights_follow_float64_and_keep_an_exact_state(name, dtype):
    if "compiled" in name and dtype == torch.bfloat16:
        pytest.skip("one compilation is enough")
    exact, inputs, labels = problem(dtype=torch.float64)
    with torch.no_grad():
        for p in exact.parameters():
            p.copy_(p.to(dtype))
    narrow = copy.deepcopy(exact).to(dtype)
    steps(exact, MAKE[name](exact.parameters()), inputs, labels, 3)
    optimizer = MAKE[name](narrow.parameters())
    steps(narrow, optimizer, inputs.to(dtype), labels, 3)
    assert all(p.dtype == dtype for p in narrow.parameters())
    assert close(narrow, exact, rtol=0, atol=0.05 if dtype == torch.bfloat16 else 1e-3)
    resumed = MAKE[name](copy.deepcopy(narrow).parameters())
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for ours, theirs in zip(optimizer.state.values(), resumed.state.values(), strict=True):
        assert ours.get("mean_square") == theirs.get("mean_square")


@every_eager
def test_a_step_asks_no_value_of_a_device(name):
    """Tensors on torch's ``meta`` device have no values: any attempt to read one, as a synchronization does, raises."""
    model, *_ = problem()
    model.to("meta")
    optimizer = MAKE[name](model.parameters(), foreach=True)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        optimizer.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@every_eager
@every_implementation
def test_a_step_makes_no_synchronization_on_cuda(name, how):
    if how == {"foreach": False}:
        pytest.skip("torch's own loop over tensors may")
    model, inputs, labels = problem()
    model.to("cuda")
    optimizer = MAKE[name](model.parameters(), **how)
    steps(model, optimizer, inputs.cuda(), labels.cuda(), 3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_eager
def test_torch_compile_of_the_step_gives_the_same_steps(name):
    model, inputs, labels = problem(dtype=torch.float64)
    twin = copy.deepcopy(model)
    ours, theirs = MAKE[name](model.parameters()), MAKE[name](twin.parameters())
    compiled = torch.compile(ours.step, backend="eager")
    for _ in range(4):
        ours.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        compiled()
    steps(twin, theirs, inputs, labels, 4)
    assert close(model, twin, rtol=0, atol=1e-5)  # torch counts a compiled Adam's steps in float32


def test_it_equals_its_method_on_the_base_optimizer():
    """One implementation: the drop-in and the attached method make bitwise the same steps."""
    for drop_in, base, method in [
        (lambda p: PAdam(p, weight_decay=0.01), torch.optim.Adam, lambda p: PNormDecay(p, 0.01)),
        (
            lambda p: SGDS(p, momentum=0.9, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, 1e-3, 0.9),
            lambda p: ScheduledDecay(p, 0.1),
        ),
        (lambda p: AdamS(p, weight_decay=0.01), torch.optim.Adam, lambda p: ScheduledDecay(p, 0.01)),
    ]:
        model, inputs, labels = problem(dtype=torch.float64)
        twin = copy.deepcopy(model)
        steps(model, drop_in([p for p in model.parameters() if p.dim() > 1]), inputs, labels, 4)
        optimizer = base([p for p in twin.parameters() if p.dim() > 1])
        method([p for p in twin.parameters() if p.dim() > 1]).attach(optimizer)
        steps(twin, optimizer, inputs, labels, 4)
        assert close(model, twin, rtol=1e-13, atol=1e-15)


def test_adams_without_gradient_scale_is_adamw(float64):
    """A constant gradient of size 1 has V = 1, and AdamS is AdamW."""
    ours, theirs = (torch.ones(4, requires_grad=True) for _ in range(2))
    adams, adamw = AdamS([ours], weight_decay=0.1), torch.optim.AdamW([theirs], weight_decay=0.1)
    for _ in range(5):
        for p, optimizer in ((ours, adams), (theirs, adamw)):
            p.grad = torch.ones(4)
            optimizer.step()
    assert torch.allclose(ours, theirs, rtol=1e-14)


def test_vanishing_gradients_neither_turn_weights_over_nor_decay_them_at_zero():
    w = torch.ones(3, requires_grad=True)
    optimizer = AdamS([w], weight_decay=0.1)
    zero_gradients(optimizer)
    optimizer.step()
    assert w.tolist() == [1.0] * 3
    w.grad = torch.full((3,), 1e-30)
    optimizer.step()
    assert torch.isfinite(w).all() and (w.abs() <= 1.01).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: AdamS(p, weight_decay=-1), "weight_decay"),
        (lambda p: AdamS(p, weight_decay=float("inf")), "weight_decay=inf: must be a finite number >= 0"),
        (lambda p: SGDS(p, momentum=1.0), "momentum=1.0: must be less than 1 for a scheduled decay"),
        (lambda p: PAdam(p, p=0), "p=0: must be a finite number > 0"),
        (lambda p: PAdam([{"params": p, "p": -1}]), "p=-1: must be a finite number > 0"),
        (lambda p: PAdam(p, compiled=True, fused=True), "compiled=True: not together with foreach or fused"),
        (
            lambda p: AdamS([torch.zeros(2, dtype=torch.complex64, requires_grad=True)]),
            "AdamS does not support complex parameters",
        ),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make([torch.zeros(2, requires_grad=True)])


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    optimizer = AdamS([torch.zeros(2, requires_grad=True)])
    with pytest.raises(ValueError, match="weight_decay=-1"):
        optimizer.add_param_group({"params": [torch.zeros(2, requires_grad=True)], "weight_decay": -1})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("make", [AdamS, SGDS, PAdam])
def test_sparse_gradients_are_refused(make):
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = make(table.parameters())
    table(torch.tensor([1])).sum().backward()
    before = table.weight.detach().clone()
    with pytest.raises(RuntimeError, match=f"{make.__name__} does not support sparse gradients"):
        optimizer.step()
    assert torch.equal(table.weight, before)


def test_signatures_are_torchs_own():
    defaults = {
        AdamS: {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 5e-4, "amsgrad": False},
        SGDS: {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False},
        PAdam: {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-3, "p": 0.8},
    }
    for make, expected in defaults.items():
        optimizer = make([torch.zeros(2, 2, requires_grad=True)])
        assert {key: optimizer.param_groups[0][key] for key in expected} == expected
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert make([("w", torch.zeros(2, 2, requires_grad=True))]).param_groups[0]["param_names"] == ["w"]


def test_decoupled_decay_on_adam_is_adamw_bit_by_bit():
    model, inputs, labels = problem()
    twin = copy.deepcopy(model)
    ours = torch.optim.Adam(model.parameters(), lr=1e-2)
    DecoupledDecay(model.parameters(), 0.1).attach(ours)
    steps(model, ours, inputs, labels, 5)
    steps(twin, torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.1), inputs, labels, 5)
    assert same(model, twin)


TAKERS = [(AdamS, {}), (AdamS, {"fused": True}), (PAdam, {}), (PAdam, {"fused": True}), (PAdam, {"compiled": True})]


@pytest.mark.parametrize("theirs", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize(("ours", "options"), TAKERS)
def test_a_whole_state_of_torchs_own_is_taken_over(ours, options, theirs):
    """Moments and values are theirs, what is done with them is ours."""
    model, inputs, labels = problem(dtype=torch.float64)
    old = theirs(model.parameters(), lr=1e-2, weight_decay=0.02)
    steps(model, old, inputs, labels, 3)
    by_state, by_hand = copy.deepcopy(model), copy.deepcopy(model)
    loaded = ours(by_state.parameters(), lr=0.5, **options)
    state = copy.deepcopy(old.state_dict())  # torch's load_state_dict keeps the tensors it is given
    for group in state["param_groups"]:
        group["fused"] = options.get("fused")
    loaded.load_state_dict(copy.deepcopy(state))
    reference = ours(by_hand.parameters(), lr=1e-2, weight_decay=0.02, **options)
    reference.load_state_dict({"state": state["state"], "param_groups": reference.state_dict()["param_groups"]})
    steps(by_state, loaded, inputs, labels, 3)
    steps(by_hand, reference, inputs, labels, 3)
    assert close(by_state, by_hand, rtol=1e-12, atol=1e-14)


def test_an_empty_parameter_and_a_gradient_out_of_range_do_no_harm():
    w, empty = torch.ones(100, 100, requires_grad=True), torch.zeros(0, requires_grad=True)
    optimizer = AdamS([w, empty], weight_decay=0.1)
    for size in (1e18, 1.0):
        w.grad, empty.grad = torch.full((100, 100), size), torch.zeros(0)
        optimizer.step()
    assert math.isfinite(optimizer.state[w]["mean_square"])
    assert optimizer.state[w]["mean_square"] == pytest.approx(optimizer.state[w]["exp_avg_sq"].mean().item(), rel=1e-5)


@every
def test_a_learning_rate_of_zero_changes_nothing(name):
    model, inputs, labels = problem()
    before = copy.deepcopy(model)
    steps(model, MAKE[name](model.parameters(), lr=0.0), inputs, labels, 3)
    assert same(model, before)


def test_a_tensor_learning_rate_of_one_element_works_as_in_torch():
    for make in (AdamS, SGDS, PAdam):
        model, inputs, labels = problem()
        twin = copy.deepcopy(model)
        steps(
            model, make(model.parameters(), lr=torch.tensor([1e-2]), weight_decay=0.1, foreach=False), inputs, labels, 3
        )
        steps(twin, make(twin.parameters(), lr=1e-2, weight_decay=0.1), inputs, labels, 3)
        assert close(model, twin, rtol=1e-5, atol=1e-7)


def test_amsgrad_in_a_group_of_a_compiled_padam_is_refused():
    w = torch.ones(2, 2, requires_grad=True)
    optimizer = PAdam([{"params": [w], "amsgrad": True}], compiled=True)
    zero_gradients(optimizer)
    with pytest.raises(RuntimeError, match="PAdam has no compiled step for a group with amsgrad"):
        optimizer.step()
