"""Strength over time: by the clock and by the gradients, on any method."""

import copy
import functools
import math

import pytest
import torch

from tests.problem import problem, same, steps, zero_gradients
from wdlab import schedules
from wdlab.regularizers import (
    L1,
    L2,
    CoherenceGate,
    Coherent,
    DecoupledDecay,
    Delayed,
    Early,
    GradientScale,
    Late,
    OverTime,
    PathProx,
    PNormDecay,
    ScheduledDecay,
    ScheduleFactor,
    WarmUp,
)
from wdlab.schedules import Clock


def strengths(over_time, count: int, gradients=None, make=L2) -> list[float]:
    """The strength in force in each step of a run, for a strength of 1."""
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1e-3)
    method = make([w], 1.0, over_time=over_time)
    method.attach(optimizer)
    found = []
    for step in range(count):
        w.grad = torch.zeros(2) if gradients is None else torch.tensor(gradients[step])
        optimizer.step()
        found.append(method.strength_in_force)
    return found


@pytest.mark.parametrize(
    ("over_time", "expected"),
    [
        (None, [1, 1, 1, 1, 1, 1]),
        (OverTime(), [1, 1, 1, 1, 1, 1]),
        (Early(steps=2), [1, 1, 0, 0, 0, 0]),
        (Early(epochs=1.5, steps_per_epoch=2), [1, 1, 1, 0, 0, 0]),
        (Delayed(steps=4), [0, 0, 0, 0, 1, 1]),
        (Late(epochs=2, steps_per_epoch=2), [0, 0, 0, 0, 1, 1]),
        (WarmUp(steps=3), [0.25, 0.5, 0.75, 1, 1, 1]),
        ((Delayed(steps=1), Early(steps=3)), [0, 1, 1, 0, 0, 0]),
        ((WarmUp(steps=3), Delayed(steps=2)), [0, 0, 0.75, 1, 1, 1]),
    ],
)
def test_strengths_by_the_clock(over_time, expected):
    assert strengths(over_time, 6) == expected


def test_a_delayed_method_is_off_and_then_bitwise_the_plain_one():
    model, inputs, labels = problem()
    twin = copy.deepcopy(model)
    ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin))
    PathProx.for_model(model, 0.01, over_time=Delayed(steps=3)).attach(ours)
    steps(model, ours, inputs, labels, 3)
    steps(twin, theirs, inputs, labels, 3)
    assert same(model, twin)
    PathProx.for_model(twin, 0.01).attach(theirs)
    steps(model, ours, inputs, labels, 3)
    steps(twin, theirs, inputs, labels, 3)
    assert same(model, twin)


def test_the_clock_goes_on_where_it_was():
    model, inputs, labels = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = L2.for_model(model, 0.1, over_time=Early(steps=4))
    method.attach(optimizer)
    steps(model, optimizer, inputs, labels, 3)
    resumed = L2.for_model(model, 0.1, over_time=Early(steps=4))
    resumed.load_state_dict(method.state_dict())
    assert resumed.updates == 3 and resumed.strength_in_force == 0.1
    with pytest.raises(ValueError, match="over_time: state has 1, this L2 0"):
        L2.for_model(model, 0.1).load_state_dict(method.state_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Early(), "epochs=None, steps=None: give exactly one of them"),
        (lambda: Delayed(epochs=1, steps=1), "epochs=1, steps=1: give exactly one of them"),
        (lambda: WarmUp(steps=-1), "steps=-1: must be a finite number >= 0"),
        (
            lambda: CoherenceGate("cosine"),
            "coherence='cosine': must be one of running_mean, total_gradient, norm_ratio",
        ),
        (lambda: CoherenceGate(threshold=float("nan")), "threshold=nan: must be a finite number"),
        (lambda: CoherenceGate(momentum=1), "momentum=1: must be less than 1"),
        (lambda: L2([torch.ones(1)], 0.1, over_time=3), "over_time"),
        (lambda: L2([torch.ones(1)], 0.1, over_time=["early"]), "over_time='early': must be an OverTime"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_epochs_without_their_length_and_strange_optimizers_are_refused_at_attach():
    w = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match="epochs=5: needs steps_per_epoch too"):
        L2([w], 0.1, over_time=Early(epochs=5)).attach(torch.optim.SGD([w], lr=0.1))
    with pytest.raises(ValueError, match="GradientScale: needs Adam, AdamW or SGD, got RMSprop"):
        ScheduledDecay([w], 0.1).attach(torch.optim.RMSprop([w]))
    with pytest.raises(ValueError, match=r"momentum=1\.0: must be less than 1"):
        ScheduledDecay([w], 0.1).attach(torch.optim.SGD([w], lr=0.1, momentum=1.0))


# -- the coherence gate --


def test_gate_by_the_running_mean():
    """Off in the first step, which has no mean; then on while a gradient points where those before it did."""
    gradients = [[1.0, 0.0], [1.0, 0.1], [0.0, -1.0], [0.9, 0.1], [-1.0, 0.0]]
    assert strengths(CoherenceGate(threshold=0.5), 5, gradients) == [0, 1, 0, 1, 0]


def test_gate_by_the_total_gradient_is_the_cosine_between_loss_and_total():
    gate = CoherenceGate("total_gradient", threshold=0.6)
    w = torch.tensor([1.0, 0.0], requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.0)
    L2([w], 2.0, over_time=gate).attach(optimizer)
    for g in ([0.0, 1.0], [0.0, 3.0]):  # r = (2, 0)
        w.grad = torch.tensor(g)
        optimizer.step()
        assert gate.statistic.item() == pytest.approx(g[1] / math.hypot(2, g[1]))
    assert gate.factor(0, {}) == 1


def test_gate_by_the_ratio_of_norms():
    gate = CoherenceGate("norm_ratio", threshold=1.0)
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.0)
    L1([w], 0.5, over_time=gate).attach(optimizer)
    w.grad = torch.tensor([0.3, 0.4])
    optimizer.step()
    assert gate.statistic.item() == pytest.approx(0.5 / (0.5 * math.sqrt(2)))
    assert gate.factor(0, {}) == 0 and w.grad.tolist() == pytest.approx([0.3, 0.4])


@pytest.mark.parametrize("reading", ["total_gradient", "norm_ratio"])
@pytest.mark.parametrize("make", [DecoupledDecay, PNormDecay, lambda w, s, **k: PNormDecay(w, s, 2, **k)])
def test_every_method_has_a_penalty_gradient_for_the_gate(make, reading):
    w = torch.tensor([0.5, -0.2], requires_grad=True)
    gate = CoherenceGate(reading)
    optimizer = torch.optim.SGD([w], lr=0.1)
    make([w], 0.1, over_time=gate).attach(optimizer)
    w.grad = torch.tensor([0.1, 0.3])
    optimizer.step()
    assert 0 < gate.statistic.item() < float("inf")


def test_the_penalty_gradient_of_pathprox_is_the_derivative_of_its_penalty(float64):
    model, *_ = problem(dtype=torch.float64)
    for options in ({}, {"regularize_bias": True}):
        method = PathProx.for_model(model, 1.0, **options)
        slopes = method.penalty_gradient(method.params)
        for w, slope in zip(method.params, slopes, strict=True):
            values = []
            for h in (1e-6, -1e-6):
                with torch.no_grad():
                    w[0, 0] += h
                    values.append(method.penalty().item())
                    w[0, 0] -= h
            assert slope[0, 0].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


def test_the_gate_sees_the_loss_alone_whatever_else_is_attached():
    gradients = [[1.0, 0.0], [1.0, 0.1], [0.0, -1.0]]
    alone = strengths(CoherenceGate(threshold=0.5), 3, gradients)
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1e-3)
    L2([w], 100.0).attach(optimizer)
    method = L2([w], 1.0, over_time=CoherenceGate(threshold=0.5))
    method.attach(optimizer)
    found = []
    for g in gradients:
        w.grad = torch.tensor(g)
        optimizer.step()
        found.append(method.strength_in_force)
    assert found == alone


@pytest.mark.filterwarnings("ignore:.* decays nothing:UserWarning")
def test_a_closed_gate_leaves_the_step_bitwise_alone():
    for make in (L1, DecoupledDecay, PNormDecay, lambda w, s, **k: PNormDecay(w, s, 1, **k)):
        model, inputs, labels = problem()
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for m in (model, twin):
                m.layers[1].weight[0] = 0.0  # a dead weight may come alive again while nothing decays it
        ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin))
        make(model.parameters(), 0.1, over_time=CoherenceGate("total_gradient", threshold=2.0)).attach(ours)
        steps(model, ours, inputs, labels, 3)
        steps(twin, theirs, inputs, labels, 3)
        assert same(model, twin)


def test_coherent_is_the_penalty_under_the_gate():
    for penalty, plain in (("l1", L1), ("l2", L2)):
        model, inputs, labels = problem()
        twin = copy.deepcopy(model)
        ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin))
        Coherent.for_model(model, 0.01, penalty=penalty, threshold=0.2).attach(ours)
        plain.for_model(twin, 0.01, over_time=CoherenceGate(threshold=0.2)).attach(theirs)
        steps(model, ours, inputs, labels, 6)
        steps(twin, theirs, inputs, labels, 6)
        assert same(model, twin)


@pytest.mark.parametrize("maximize", [False, True])
def test_projection_removes_what_opposes_the_loss(maximize):
    sign = -1 if maximize else 1
    for g, total in (([-1.0, 1.0], [0.0, 2.0]), ([1.0, 1.0], [3.0, 1.0]), ([0.0, 0.0], [2.0, 0.0])):
        w = torch.tensor([1.0, 0.0], requires_grad=True)  # r = (2, 0)
        optimizer = torch.optim.SGD([w], lr=0.1, maximize=maximize)
        Coherent([w], 2.0, coherence="project").attach(optimizer)
        w.grad = sign * torch.tensor(g)
        optimizer.step()
        assert w.tolist() == pytest.approx([1.0 - 0.1 * total[0], -0.1 * total[1]])


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_projection_takes_all_decayed_parameters_as_one_vector(penalty, float64):
    model, inputs, labels = problem(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = Coherent.for_model(model, 0.3, penalty=penalty, coherence="project")
    method.attach(optimizer)
    twin = copy.deepcopy(model)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    conflicts = 0
    for _ in range(6):
        steps(model, optimizer, inputs, labels, 1)
        plain.zero_grad()
        torch.nn.functional.cross_entropy(twin(inputs), labels).backward()
        weights = [p for p in twin.parameters() if p.dim() > 1]
        g = torch.cat([p.grad.flatten() for p in weights])
        r = torch.cat([0.3 * (p.sign() if penalty == "l1" else p).flatten() for p in weights]).detach()
        if g @ r < 0:
            r, conflicts = r - (g @ r) / (g @ g) * g, conflicts + 1
        for p, part in zip(weights, r.split([p.numel() for p in weights]), strict=True):
            p.grad += part.view_as(p)
        plain.step()
    assert conflicts
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_projection_of_one_route_only():
    with pytest.raises(ValueError, match="route='first': must be 'both' with coherence='project'"):
        Coherent([torch.ones(1)], 0.1, coherence="project", route="first")


# -- the gradient scale --


def test_the_gradient_scale_is_the_mean_second_moment_over_the_whole_optimizer(float64):
    """Parameters that the method does not decay count too; those without a gradient do not."""
    a, b, c = (torch.ones(n, requires_grad=True) for n in (2, 6, 5))
    optimizer = torch.optim.Adam([a, b, c], betas=(0.9, 0.99))
    method = ScheduledDecay([a], 0.1)
    method.attach(optimizer)
    for step in range(4):
        a.grad, b.grad, c.grad = torch.full((2,), 0.3), torch.full((6,), 0.1 * (step + 1)), None
        optimizer.step()
        state = optimizer.state
        second = torch.cat([state[p]["exp_avg_sq"] for p in (a, b)]) / (1 - 0.99 ** (step + 1))
        assert method.strength_in_force == pytest.approx(0.1 / second.mean().sqrt().item(), rel=1e-12)


def test_a_scale_attached_to_an_adam_in_training_takes_up_its_second_moment(float64):
    model, inputs, labels = problem(dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters())
    steps(model, optimizer, inputs, labels, 5)
    method = DecoupledDecay.for_model(model, 1.0, over_time=GradientScale())
    method.attach(optimizer)
    steps(model, optimizer, inputs, labels, 1)
    second = torch.cat([s["exp_avg_sq"].flatten() for s in optimizer.state.values()]) / (1 - 0.999**6)
    assert method.strength_in_force == pytest.approx(1 / second.mean().sqrt().item(), rel=1e-12)


def test_a_zero_gradient_has_no_scale_and_nothing_is_decayed():
    w = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.Adam([w])
    PNormDecay([w], 0.1, over_time=GradientScale()).attach(optimizer)
    zero_gradients(optimizer)
    optimizer.step()
    assert w.tolist() == [1.0] * 3


def test_what_looks_at_the_gradients_cannot_serve_two_methods():
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([a, b], lr=0.1)
    gate, clock = CoherenceGate(), Early(steps=3)
    L2([a], 0.1, over_time=(gate, clock)).attach(optimizer)
    with pytest.raises(ValueError, match="this CoherenceGate belongs to another method already"):
        L2([b], 0.1, over_time=gate).attach(optimizer)
    L2([b], 0.1, over_time=clock).attach(optimizer)


def test_a_scale_that_was_away_takes_up_adams_moments_again(float64):
    w = torch.ones(4, requires_grad=True)
    optimizer = torch.optim.Adam([w], betas=(0.9, 0.9))
    method = DecoupledDecay([w], 0.1, over_time=GradientScale())
    handle = method.attach(optimizer)

    def go(size: float, count: int) -> None:
        for _ in range(count):
            w.grad = torch.full((4,), size)
            optimizer.step()

    go(1.0, 5)
    handle.remove()
    go(1e-3, 300)
    method.attach(optimizer)
    go(1e-3, 1)
    assert method.strength_in_force == pytest.approx(0.1 / 1e-3, rel=1e-6)


def test_dying_gradients_stay_coherent_in_any_precision():
    for dtype, size in ((torch.float16, 1e-4), (torch.float32, 1e-30)):
        w = torch.ones(3, dtype=dtype, requires_grad=True)
        gate = CoherenceGate(threshold=0.5)
        optimizer = torch.optim.SGD([w], lr=0.1)
        L2([w], 0.1, over_time=gate).attach(optimizer)
        for _ in range(2):
            w.grad = torch.full((3,), size, dtype=dtype)
            optimizer.step()
        assert gate.statistic.item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: L1(p, 0.1, over_time=CoherenceGate()),
        lambda p: L2(p, 0.1, route="first"),
    ],
)
def test_a_state_read_on_another_device_goes_to_that_of_the_parameters(make):
    model, inputs, labels = problem()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    method = make(list(model.parameters()))
    method.attach(optimizer)
    steps(model, optimizer, inputs, labels, 2)
    state = method.state_dict()
    elsewhere = make([torch.nn.Parameter(torch.empty_like(p, device="meta")) for p in model.parameters()])
    elsewhere.load_state_dict(state)

    def tensors(value):
        if isinstance(value, torch.Tensor):
            return [value]
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return [t for part in parts for t in tensors(part)]

    found = tensors(elsewhere.state_dict())
    assert found and all(t.is_meta for t in found)


def test_any_learning_rate_schedule_is_a_schedule_of_strength(float64):
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([w], lr=0.1)
    method = DecoupledDecay([w], 0.5, ScheduleFactor(functools.partial(schedules.cosine, final=0.2)))
    method.clock = Clock(steps=10, steps_per_epoch=2)
    expected = torch.ones(3)
    with method.attach(optimizer):
        for step in range(10):
            w.grad = torch.zeros_like(w)
            optimizer.step()
            expected = expected * (1 - 0.1 * (0.5 * schedules.cosine(step, 10, 2, final=0.2)))
            assert method.strength_in_force == 0.5 * schedules.cosine(step, 10, 2, final=0.2)
    assert torch.equal(w, expected)


def test_a_schedule_without_the_length_of_the_run_is_refused_at_attach():
    w = torch.nn.Parameter(torch.ones(3))
    method = DecoupledDecay([w], 0.5, ScheduleFactor(schedules.cosine))
    with pytest.raises(ValueError, match="needs the length of the run"):
        method.attach(torch.optim.SGD([w], lr=0.1))
    with pytest.raises(ValueError, match="must be a function of step, steps and steps_per_epoch"):
        ScheduleFactor("cosine")


def test_after_the_last_handle_is_removed_the_optimizer_is_as_it_was():
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([w], lr=0.1)
    before = set(vars(optimizer))
    one, other = DecoupledDecay([w], 0.5).attach(optimizer), DecoupledDecay([w], 0.5).attach(optimizer)
    one.remove()
    assert len(optimizer._optimizer_step_pre_hooks) == len(optimizer._optimizer_step_post_hooks) == 1
    other.remove()
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert set(vars(optimizer)) == before


def test_a_method_may_be_removed_inside_a_step():
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([w], lr=0.1)
    handle = DecoupledDecay([w], 0.5).attach(optimizer)
    optimizer.register_step_post_hook(lambda *_: handle.remove())
    for _ in range(2):
        w.grad = torch.zeros_like(w)
        optimizer.step()
    assert torch.allclose(w, torch.full((3,), 0.95))
