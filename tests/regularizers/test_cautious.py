"""Cautious decay: the mask in closed form, its limits, what it keeps between the hooks of a step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.problem import problem, same, steps, twin_of
from wdlab.build import build_parts
from wdlab.errors import ConfigError
from wdlab.regularizers import (
    Corrected,
    DecoupledDecay,
    GradientScale,
    MagnitudePruning,
    PNormDecay,
    PNormProx,
    ScheduledDecay,
)
from wdlab.regularizers.cautious import moves_inwards

METHODS = {
    "decoupled": DecoupledDecay,
    "pnorm": PNormDecay,
    "pnorm 2": lambda w, s, **o: PNormDecay(w, s, p=2, **o),
    "late": lambda w, s, **o: PNormDecay(w, s, late=True, **o),
    "prox": PNormProx,
    "pruning": lambda w, s, **o: MagnitudePruning(w, s, zeros=0.0, **o),
}


def stepped(make, w, g, strength=0.5, lr=0.25, optimizer=torch.optim.SGD, **options):
    """Return the weights after one step from ``w`` with the gradient ``g``."""
    p = torch.tensor(w, dtype=torch.float64).requires_grad_()
    p.grad = torch.tensor(g, dtype=torch.float64)
    own = optimizer([p], lr=lr)
    make([p], strength, **options).attach(own)
    own.step()
    return p.detach()


def test_a_weight_is_decayed_where_update_and_weight_agree_in_sign():
    w, g = [1.0, 1.0, -2.0, -2.0, 0.0, 4.0], [1.0, -1.0, 1.0, -1.0, 1.0, 0.0]
    # w - lr g, less lr s w = w / 8 where g w >= 0
    assert stepped(DecoupledDecay, w, g, cautious=True).tolist() == [0.625, 1.25, -2.25, -1.5, -0.25, 3.5]
    assert stepped(DecoupledDecay, w, g).tolist() == [0.625, 1.125, -2.0, -1.5, -0.25, 3.5]


def test_the_weight_before_the_step_counts_also_where_the_step_crosses_zero():
    assert stepped(DecoupledDecay, [1.0], [8.0], cautious=True).tolist() == [-1.125]
    assert stepped(DecoupledDecay, [1.0], [8.0], strength=100.0, cautious=True).tolist() == [-2.0]  # 1 - lr s is 0 then


def test_an_optimizer_that_maximizes_subtracts_the_opposite():
    def ascent(p, lr):
        return torch.optim.SGD(p, lr=lr, maximize=True)

    assert stepped(DecoupledDecay, [1.0, 1.0], [1.0, -1.0], optimizer=ascent, cautious=True).tolist() == [1.25, 0.625]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mask_is_exact_for_the_smallest_numbers(dtype):
    tiny = torch.finfo(dtype).tiny
    before = torch.tensor([tiny, tiny, -tiny, -tiny, 0.0, 1.0], dtype=dtype)
    after = torch.tensor([0.0, 2 * tiny, 0.0, -2 * tiny, 1.0, 1.0], dtype=dtype)
    assert moves_inwards(before, after).tolist() == [True, False, True, False, True, True]


directions = st.lists(st.sampled_from([0.0, 1e-12, 1e-3, 0.3, 2.0]), min_size=4, max_size=4)


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(g=directions, strength=st.sampled_from([0.0, 1e-3, 0.5, 3.0, 50.0]))
def test_a_mask_of_ones_is_the_method_itself_and_one_of_zeros_the_optimizer(name, g, strength):
    w = [1.5, 0.3, 1e-3, 1e-9]
    inwards = stepped(METHODS[name], w, g, strength, cautious=True)
    assert torch.allclose(inwards, stepped(METHODS[name], w, g, strength), rtol=1e-12, atol=1e-12)
    outwards = [-(x + 0.1) for x in g]
    assert stepped(METHODS[name], w, outwards, strength, cautious=True).equal(stepped(METHODS[name], w, outwards, 0.0))


def test_what_is_zero_stays_zero_under_a_p_below_2():
    assert stepped(PNormDecay, [0.0, 0.0], [1.0, -1.0], cautious=True).tolist() == [0.0, 0.0]


def test_pruning_is_not_cautious():
    def pruned(w, strength, **options):
        return MagnitudePruning(w, strength, zeros=0.5, times=1, begin=0.0, end=1.0, steps=1, **options)

    assert stepped(pruned, [1.0, 2.0], [-1.0, -1.0], cautious=True).tolist() == [0.0, 2.25]


@pytest.mark.parametrize("name", METHODS)
def test_without_the_option_nothing_is_kept_and_with_it_only_inside_a_step(name):
    w = torch.ones(3, requires_grad=True)
    optimizer, kept = torch.optim.SGD([w], lr=0.1), []
    methods = {cautious: METHODS[name]([w], 0.1, cautious=cautious) for cautious in (False, True)}
    for method in methods.values():
        method.attach(optimizer)
    optimizer.register_step_pre_hook(lambda *_: kept.append({c: len(m._before) for c, m in methods.items()}))
    w.grad = torch.ones(3)
    optimizer.step()
    assert kept == [{False: 0, True: 1}]
    assert [len(method._before) for method in methods.values()] == [0, 0]


def test_it_is_no_penalty_that_is_minimized_and_it_is_said():
    model, *_ = problem()
    assert PNormProx.for_model(model, 0.1).has_objective
    method = PNormProx.for_model(model, 0.1, cautious=True)
    assert not method.has_objective and "learning rate, cautious" in method.describe().splitlines()[0]
    assert "cautious" not in PNormProx.for_model(model, 0.1).describe()


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("value", [1, "true", None])
def test_another_value_is_refused(make, value):
    with pytest.raises(ValueError, match=f"cautious={value!r}: must be true or false"):
        make([torch.ones(1, requires_grad=True)], 0.1, cautious=value)


def test_another_value_is_refused_on_the_command_line(compose):
    for name in ("decoupled", "scheduled", "pnorm", "pnorm_prox", "magnitude_pruning", "cautious"):
        with pytest.raises(ConfigError, match=r"regularizer\.cautious='maybe': must be true or false"):
            build_parts(compose(f"regularizer={name}", "regularizer.cautious=maybe"))


def test_one_config_combines_cautious_corrected_and_p_norm_decay(compose):
    overrides = (
        "regularizer=pnorm",
        "regularizer.cautious=true",
        "regularizer/over_time=corrected",
        "model.norm=batch",
    )
    model, optimizer, method, _ = build_parts(compose(*overrides, "regularizer.strength=0.1", "model.width=8"))
    twin = twin_of(model)
    rate = optimizer.param_groups[0]["lr"]
    alone = torch.optim.SGD(twin.parameters(), lr=rate)
    assert type(method) is PNormDecay and method.cautious and isinstance(method.over_time[0], Corrected)
    method.attach(optimizer)
    for step in range(4):
        factor = 1 / (1 + step)
        corrected = {id(w) for w in method.over_time[0].weights}
        before = {id(p): p.detach().clone() for p in model.parameters()}
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            theirs.data.copy_(ours.data)
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        for group in (*optimizer.param_groups, *alone.param_groups):
            group["lr"] = rate * factor
        optimizer.step()
        alone.step()
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            w, u = before[id(ours)], theirs.detach()
            if any(ours is p for p in method.params):
                t = 0.1 * rate * factor * (factor if id(ours) in corrected else 1.0)
                u = torch.where((w - u) * w >= 0, u / (1 + 0.8 * t * w.abs() ** -1.2), u)
            assert torch.allclose(ours, u, rtol=1e-5, atol=1e-7)
    assert 0 < len(corrected) < len(method.params)


def test_scheduled_decay_is_decoupled_decay_under_a_gradient_scale():
    model, inputs, labels = problem()
    twin = twin_of(model)
    for one, make in (
        (model, lambda m: ScheduledDecay.for_model(m, 0.01, cautious=True)),
        (twin, lambda m: DecoupledDecay.for_model(m, 0.01, cautious=True, over_time=GradientScale())),
    ):
        optimizer = torch.optim.Adam(one.parameters(), lr=0.01)
        make(one).attach(optimizer)
        steps(one, optimizer, inputs, labels, 4)
    assert same(model, twin)
