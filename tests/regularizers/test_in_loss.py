"""Penalties in the loss gradient: L2 is torch's ``weight_decay``, to the last bit; Adam's routes by hand."""

import copy

import pytest
import torch
from torch import nn

from wdlab.models import MLP
from wdlab.regularizers import L1, L2, Delayed, Early, Lp
from wdlab.regularizers.routes import ROUTES


@pytest.mark.parametrize(
    "make",
    [
        lambda p, wd: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=wd),
        lambda p, wd: torch.optim.Adam(p, lr=1e-2, weight_decay=wd),
    ],
    ids=["sgd", "adam"],
)
def test_equals_the_weight_decay_of_torch(make):
    torch.manual_seed(0)
    model = MLP((1, 4, 4), classes=3, width=8, depth=3)
    twin = copy.deepcopy(model)
    inputs, labels = torch.randn(16, 1, 4, 4), torch.randint(3, (16,))
    ours, theirs = make(model.parameters(), 0.0), make(twin.parameters(), 0.01)
    L2.for_model(model, 0.01, scope="all").attach(ours)
    for _ in range(10):
        for network, optimizer in ((model, ours), (twin, theirs)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_penalty_is_half_the_squared_norm_times_strength():
    weights = [torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([[2.0]], requires_grad=True)]
    assert L2(weights, strength=0.1).penalty().item() == pytest.approx(0.1 * (25 + 4) / 2)


def test_a_parameter_without_a_gradient_is_left_alone():
    frozen, live = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([frozen, live], lr=1.0)
    L2([frozen, live], strength=0.5).attach(optimizer)
    live.grad = torch.zeros(2)
    optimizer.step()
    assert frozen.tolist() == [1.0, 1.0] and live.tolist() == [0.5, 0.5]


# -- Adam's routes (P4), written out in plain arithmetic --


def adam_by_hand(route: str, start: torch.Tensor, gradients, penalty, lr: float, beta1=0.9, beta2=0.99, eps=1e-8):
    w = start.clone()
    m, v, own = (torch.zeros_like(w) for _ in range(3))
    for t, g in enumerate(gradients, 1):
        r = penalty(w)
        if route == "decoupled":
            w = w - lr * r
        m = beta1 * m + (1 - beta1) * (g + r if route in ("both", "first") else g)
        v = beta2 * v + (1 - beta2) * (g + r if route in ("both", "second") else g) ** 2
        own = beta1 * own + (1 - beta1) * (r if route == "separate_explicit" else 0 * r)
        mean = (m + own) / (1 - beta1**t)
        root = (v / (1 - beta2**t)).sqrt() + eps
        w = w - lr * mean / root
        if route == "separate":
            w = w / (1 + lr * penalty(w) / w / root)
    return w


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("make", "gradient"), [(L2, lambda w: w), (L1, torch.sign)])
def test_a_route_puts_the_penalty_where_it_says(route, make, gradient, fused, float64):
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 4), [torch.randn(3, 4) for _ in range(6)]
    w = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([w], lr=0.05, betas=(0.9, 0.99), fused=fused)
    make([w], 0.3, route=route).attach(optimizer)
    for g in gradients:
        w.grad = g.clone()
        optimizer.step()
    assert torch.allclose(w, adam_by_hand(route, start, gradients, lambda w: 0.3 * gradient(w), 0.05), rtol=1e-9)


def test_the_route_decoupled_is_adamw_bit_by_bit():
    torch.manual_seed(0)
    model = MLP((1, 4, 4), classes=3, width=8, depth=3)
    twin = copy.deepcopy(model)
    ours = torch.optim.Adam(model.parameters(), lr=1e-2)
    L2(model.parameters(), 0.1, route="decoupled").attach(ours)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_the_routes_through_adams_buffers_need_adam():
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="route='separate': needs Adam or AdamW, got SGD"):
        L2([w], 0.1, route="separate").attach(torch.optim.SGD([w], lr=0.1))
    with pytest.raises(ValueError, match="route='third': must be one of both, first, second, separate, sep"):
        L2([w], 0.1, route="third")


def test_lp_stays_finite_at_zero_for_p_below_1():
    w = torch.tensor([0.0, 1e-30, -0.5], requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1.0)
    Lp([w], 1e-3, p=0.5, epsilon=1e-6).attach(optimizer)
    w.grad = torch.zeros(3)
    optimizer.step()
    slopes = [0.0, 1e-3 * 0.5 * 1e-6**-0.5, -1e-3 * 0.5 * (0.5 + 1e-6) ** -0.5]
    assert w.tolist() == pytest.approx([0.0, 1e-30 - slopes[1], -0.5 - slopes[2]])


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("over_time", [Early(steps=3), Delayed(steps=3)], ids=["early", "delayed"])
def test_a_route_holds_while_the_strength_comes_and_goes(route, over_time, float64):
    torch.manual_seed(0)
    start, gradients = torch.randn(4), [torch.randn(4) for _ in range(8)]
    w = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([w], lr=0.05, betas=(0.9, 0.99))
    L2([w], 0.3, route=route, over_time=over_time).attach(optimizer)
    for g in gradients:
        w.grad = g.clone()
        optimizer.step()
    calls = 2 if route == "separate" else 1  # of the penalty in each step
    made = iter(step for step in range(len(gradients)) for _ in range(calls))
    by_hand = adam_by_hand(route, start, gradients, lambda w: 0.3 * w * over_time.factor(next(made), {}), 0.05)
    assert torch.allclose(w, by_hand, rtol=1e-9)


def adam_steps(gradients, start, route, strength=0.3, over_time=None, make=L2, **settings):
    """The weights after each step of Adam with a penalty on a route."""
    w, found = start.clone().requires_grad_(), []
    optimizer = torch.optim.Adam([w], **{"lr": 0.05} | settings)
    make([w], strength, route=route, over_time=over_time).attach(optimizer)
    for g in gradients:
        w.grad = g.clone()
        optimizer.step()
        found.append(w.detach().clone())
    return found


@pytest.mark.parametrize("over_time", [None, Early(steps=20), Delayed(steps=20)], ids=["always", "early", "delayed"])
@pytest.mark.parametrize(("make", "amsgrad"), [(L2, False), (L2, True), (L1, False)])
def test_first_and_separate_explicit_make_the_same_steps(make, amsgrad, over_time, float64):
    """A moment is linear in the gradient: of g + r it is the sum of those of g and of r, at one beta."""
    torch.manual_seed(0)
    start, gradients = torch.randn(8), [torch.randn(8) * 0.9**t for t in range(60)]
    settings = {"over_time": over_time, "make": make, "amsgrad": amsgrad}
    ours, theirs = (adam_steps(gradients, start, route, **settings) for route in ("first", "separate_explicit"))
    both, implicit = (adam_steps(gradients, start, route, **settings)[-1] for route in ("both", "separate"))
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(ours, theirs, strict=True))
    assert (both - ours[-1]).abs().max() > 0.01 and (implicit - ours[-1]).abs().max() > 0.01


def test_where_the_loss_has_no_gradient_separate_shrinks_a_weight(float64):
    start, gradients = torch.tensor([1.0, -2.0, 0.0]), [torch.zeros(3)] * 5
    for count, w in enumerate(adam_steps(gradients, start, "separate", strength=1e-3, lr=0.01, eps=1e-6), 1):
        assert torch.allclose(w, start / (1 + 0.01 * 1e-3 / 1e-6) ** count, rtol=1e-12)


@pytest.mark.parametrize(("share", "explodes"), [(0.98, False), (1.02, True)])
def test_where_the_loss_has_no_gradient_separate_explicit_has_a_limit(share, explodes, float64):
    """Steps by a mean of the penalty gradients are those of a heavy ball, which is stable up to 2 (1 + b) / (1 - b)."""
    strength = share * 2 * 1.9 / 0.1 * 1e-6 / 0.01
    found = adam_steps([torch.zeros(1)] * 400, torch.ones(1), "separate_explicit", strength, lr=0.01, eps=1e-6)
    assert (found[399].abs() > found[199].abs()).item() == explodes


def test_separate_is_decoupled_decay_where_the_second_moment_is_one(float64):
    """Gradients of size 1 have the second moment 1: the implicit step of AdamW."""
    start, gradient = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.0, -1.0, 1.0])
    expected = start
    for w in adam_steps([gradient] * 5, start, "separate", eps=0.0):
        expected = (expected - 0.05 * gradient) / (1 + 0.05 * 0.3)
        assert torch.allclose(w, expected, rtol=1e-12)


@pytest.mark.parametrize("make", [L1, L2, Lp])
def test_separate_is_separate_explicit_for_small_learning_rates(make, float64):
    """Without the lag of a moment (beta1 = 0) the two differ in one step by the square of the learning rate."""
    start, gradient = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.0, -0.3, 2.0])
    differences = []
    for lr in (1e-3, 5e-4):
        settings = {"make": make, "lr": lr, "betas": (0.0, 0.9)}
        (ours,), (theirs,) = (
            adam_steps([gradient], start, route, **settings) for route in ("separate", "separate_explicit")
        )
        differences.append((ours - theirs).abs())
    assert torch.allclose(differences[0] / differences[1], torch.tensor(4.0), rtol=0.01)


@pytest.mark.parametrize("make", [L1, L2, Lp])
def test_separate_never_carries_a_weight_past_zero(make):
    start = torch.tensor([1.0, -1e-3, 1e-40, 0.0, -3e30])
    for w in adam_steps([torch.zeros(5)] * 3, start, "separate", strength=100.0, make=make):
        assert w.isfinite().all() and (w * start >= 0).all() and (w.abs() <= start.abs()).all()
