"""p-norm decay and its comparators: closed forms, limits, brute force."""

import math

import pytest
import torch

from tests.problem import zero_gradients
from wdlab.build import build_parts
from wdlab.regularizers import DecoupledDecay, Early, PNormDecay, PNormProx, WarmUp
from wdlab.regularizers.penalties import Absolute, Bridge, HalfSquare
from wdlab.regularizers.pnorm_factors import compiled_shrink_factors, power, shrink_factor, shrink_factors

WEIGHTS = [0.0, 1e-20, -1e-6, 1e-3, -0.1, 1.0, -20.0]
POWERS = (0.3, 0.5, 0.8, 1, 1.2, 1.5, 1.9, 2.5, 3)


def decayed(make, weights=WEIGHTS, lr=0.1, gradient=0.0):
    w = torch.tensor(weights, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=lr)
    make([w]).attach(optimizer)
    w.grad = torch.full_like(w, gradient)
    optimizer.step()
    return w.detach()


@pytest.mark.parametrize("p", POWERS)
def test_the_factor_is_the_published_one(p, float64):
    """``w = u / (1 + p a s |w0|^(p-2))`` with the weight before the step, and at 0 its limit."""
    a, s, g = 0.1, 0.02, 0.3
    for before, after in zip(WEIGHTS, decayed(lambda w: PNormDecay(w, s, p), lr=a, gradient=g).tolist(), strict=True):
        u = before - a * g
        at_zero = 0.0 if p < 2 else u
        expected = u / (1 + p * a * s * abs(before) ** (p - 2)) if before else at_zero
        assert after == pytest.approx(expected, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("p", POWERS)
def test_the_late_variant_takes_the_new_weight(p, float64):
    a, s, g = 0.1, 0.02, 0.3
    late = decayed(lambda w: PNormDecay(w, s, p, late=True), lr=a, gradient=g)
    for before, after in zip(WEIGHTS, late.tolist(), strict=True):
        u = before - a * g
        assert after == pytest.approx(u / (1 + p * a * s * abs(u) ** (p - 2)), rel=1e-12)


def test_p_2_has_the_factor_of_decoupled_decay_to_first_order(float64):
    factor = decayed(lambda w: PNormDecay(w, 0.3, 2), [1.0], lr=1e-4)
    assert factor.item() == pytest.approx(1 / (1 + 2 * 1e-4 * 0.3), rel=1e-15)
    decoupled = decayed(lambda w: DecoupledDecay(w, 2 * 0.3), [1.0], lr=1e-4)  # s |w|^2 here, s/2 |w|^2 there
    assert factor.item() == pytest.approx(decoupled.item(), abs=2 * (2 * 1e-4 * 0.3) ** 2)


@pytest.mark.parametrize("p", [0.5, 1, 1.5, 2])
def test_the_special_cases_are_continued_by_their_neighbours(p, float64):
    w = [torch.tensor(WEIGHTS[1:])]
    exact = shrink_factors(w, 0.01, p)
    exact = exact[0] if isinstance(exact, list) else torch.full_like(w[0], exact)
    for near in (p - 1e-9, p + 1e-9):
        assert torch.allclose(shrink_factors(w, 0.01, near)[0], exact, rtol=1e-6)


@pytest.mark.parametrize("p", [*POWERS, 2])
def test_compiled_and_tensor_strengths_give_the_same_factors(p, float64):
    w = [torch.tensor(WEIGHTS), torch.tensor([[3.0, 0.0]])]
    for c in (0.0, 1e-300, 1e-6, 0.3, 1e30):
        plain = shrink_factors(w, c, p)
        plain = plain if isinstance(plain, list) else [torch.full_like(x, plain) for x in w]
        by_tensor = shrink_factors(w, torch.tensor(c), p)
        for other in (by_tensor, compiled_shrink_factors(w, c, p)):
            other = other if isinstance(other, list) else [other.expand(x.shape) for x in w]
            assert all(torch.allclose(x, y, rtol=1e-12, atol=0) for x, y in zip(plain, other, strict=True)), c


@pytest.mark.parametrize("lr", [0.0, 0.1])
@pytest.mark.parametrize("p", [0.5, 0.8, 1, 1.5, 1.9])
def test_zero_stays_zero_below_2_while_something_is_decayed(p, lr, float64):
    after = decayed(lambda w: PNormDecay(w, 0.01, p), [0.0, 0.5], lr=lr, gradient=1.0)
    assert after[0] == 0 and torch.isfinite(after).all()


def test_small_weights_become_exactly_zero_in_a_few_steps():
    w = torch.full((4,), 1e-3, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    PNormDecay([w], 0.5, p=0.5).attach(optimizer)
    for _ in range(10):
        w.grad = torch.full_like(w, 1e-4)
        optimizer.step()
    assert w.tolist() == [0.0] * 4


@pytest.mark.parametrize("p", [1, 1.5])
def test_the_exact_prox_minimizes_its_objective(p, float64):
    """``argmin_z (z - u)^2 / 2 + t |z|^p`` by brute force on a grid."""
    a, s = 0.5, 0.6
    after = decayed(lambda w: PNormProx(w, s, p), WEIGHTS, lr=a)
    for u, z in zip(WEIGHTS, after.tolist(), strict=True):
        grid = torch.linspace(-1.2 * abs(u), 1.2 * abs(u), 400_001)
        best = grid[((grid - u).square() / 2 + a * s * grid.abs() ** p).argmin()]
        assert z == pytest.approx(best.item(), abs=1e-5 * max(abs(u), 1e-12))


def test_the_decay_is_a_proximal_step_to_first_order(float64):
    """For a small lr all forms on one penalty agree: w - a s p |w|^(p-1) sign(w)."""
    for p in (1, 1.5):
        for make in (lambda w, p=p: PNormDecay(w, 0.1, p), lambda w, p=p: PNormProx(w, 0.1, p)):
            after = decayed(make, [0.7, -0.3], lr=1e-6)
            expected = [x - 1e-7 * p * math.copysign(abs(x) ** (p - 1), x) for x in (0.7, -0.3)]
            assert after.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("penalty", [HalfSquare(), Absolute(), Bridge(0.5, 1e-3), Bridge(1.5), Bridge(2), Bridge(0.8)])
def test_a_penalty_gradient_is_the_derivative_of_its_value(penalty, float64):
    w = torch.tensor([0.3, -0.7, 2.0])
    h = 1e-6
    for i, slope in enumerate(penalty.gradient([w])[0].tolist()):
        step = torch.zeros(3)
        step[i] = h
        difference = (penalty.value([w + step]) - penalty.value([w - step])) / (2 * h)
        assert slope == pytest.approx(difference.item(), rel=1e-6)


def test_the_bridge_penalty_is_finite_and_flat_at_zero():
    (slope,) = Bridge(0.5).gradient([torch.tensor([0.0, -0.0, 1e-30, -1e-30])])
    assert slope[:2].tolist() == [0, 0] and torch.isfinite(slope).all() and slope[3] < 0 < slope[2]


def test_penalty_is_s_times_the_sum_of_powers(float64):
    w = torch.tensor([[0.5, -2.0], [0.0, 1.0]], requires_grad=True)
    assert PNormDecay([w], 0.1, p=0.8).penalty().item() == pytest.approx(0.1 * (0.5**0.8 + 2**0.8 + 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: PNormDecay(w, 0.1, p=0), "p=0: must be a finite number > 0"),
        (lambda w: PNormDecay(w, 0.1, p=float("nan")), "p=nan: must be a finite number > 0"),
        (lambda w: PNormDecay(w, 0.1, p="1"), "p='1': must be a number > 0"),
        (lambda w: PNormDecay([{"params": w, "p": -2}], 0.1), "p=-2: must be a finite number > 0"),
        (lambda w: PNormProx(w, 0.1, p=0.8), "p=0.8: must be 1 or 1.5 for the exact prox"),
    ],
)
def test_a_bad_p_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make([torch.zeros(2, requires_grad=True)])


def test_groups_have_a_p_of_their_own(float64):
    a, b = (torch.full((2,), 0.5, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([a, b], lr=0.1)
    PNormDecay([{"params": [a], "p": 1}, {"params": [b], "strength": 0.4}], 0.2, p=2).attach(optimizer)
    zero_gradients(optimizer)
    optimizer.step()
    assert a.tolist() == pytest.approx([0.5 / (1 + 0.1 * 0.2 / 0.5)] * 2)
    assert b.tolist() == pytest.approx([0.5 / (1 + 2 * 0.1 * 0.4)] * 2)


@pytest.mark.parametrize("q", [0.01, 0.2, 0.7, 1.2, 1.99, 3.0])
def test_the_power_for_compiled_loops_is_as_accurate_as_exp_and_log(q):
    x = torch.cat([torch.logspace(-37, 38, 200_001), torch.linspace(0.5, 2, 100_001)])
    exact = x.double() ** q
    inside = (exact > 1e-37) & (exact < 1e38)
    error = (power(x, q)[inside] / exact[inside] - 1).abs().max()
    library = (torch.exp(q * x.log())[inside] / exact[inside] - 1).abs().max()
    assert error <= 1.1 * library.item() + 3e-7
    assert power(torch.zeros(3), q).tolist() == [0.0] * 3


@pytest.mark.parametrize("q", [40.0, 1e4, 1e9])
def test_a_power_out_of_the_range_of_float32_is_zero_or_large(q):
    found = power(torch.tensor([1e-30, 0.5, 1.0, 2.0, 1e30]), q)
    assert found.isfinite().all()
    assert found[0] == 0 and found[1] <= 1e-12 and found[2] == pytest.approx(1) and (found[3:] >= 1e12).all()


@pytest.mark.parametrize("p", [*POWERS, 2])
@pytest.mark.parametrize("c", [1e-36, 1e-8, 0.1, 1e36])
def test_the_factor_for_compiled_loops_has_no_nan_in_float32(p, c):
    w = torch.tensor([0.0, 1e-45, 1e-38, 1e-20, 1e-4, 1.0, 1e10, 1e30, 3.4e38])
    found = shrink_factor(w, torch.tensor(c), p)
    exact = shrink_factors([w.double()], c, p)
    exact = exact[0] if isinstance(exact, list) else torch.full_like(w, exact)
    assert ((found >= 0) & (found <= 1)).all()
    usual = (w == 0) | ((w >= 1e-30) & (w <= 1e30))
    if 1e-8 <= c <= 1:
        assert torch.allclose(found.double()[usual], exact.double()[usual], rtol=1e-4, atol=1e-6)


# -- the elastic p-norm


@pytest.mark.parametrize("p", [*POWERS, 2])
def test_the_elastic_factor_is_the_published_one(p, float64):
    """``w = u X / (X (1 + a r) + p a s)`` with ``X = |w0|^(2-p)``."""
    a, s, r, g = 0.1, 0.02, 3.0, 0.3
    after = decayed(lambda w: PNormDecay(w, s, p, ridge=r), lr=a, gradient=g).tolist()
    for before, found in zip(WEIGHTS[1:], after[1:], strict=True):
        x = abs(before) ** (2 - p)
        assert found == pytest.approx((before - a * g) * x / (x * (1 + a * r) + p * a * s), rel=1e-12, abs=1e-300)
    assert after[0] == (0 if p < 2 else pytest.approx(-a * g / (1 + a * r + (2 * a * s if p == 2 else 0))))


@pytest.mark.parametrize("p", [0.5, 0.8, 2])
def test_the_limits_of_the_elastic_p_norm(p, float64):
    a, g = 0.1, 0.3
    without_p = decayed(lambda w: PNormDecay(w, 0.0, p, ridge=3.0), lr=a, gradient=g)
    assert without_p.tolist() == pytest.approx([(w - a * g) / (1 + a * 3) for w in WEIGHTS], rel=1e-14)
    first_order = decayed(lambda w: PNormDecay(w, 0.0, p, ridge=0.01), [1.0], lr=a).item()
    assert first_order == pytest.approx(decayed(lambda w: DecoupledDecay(w, 0.01), [1.0], lr=a).item(), abs=2e-6)
    plain = decayed(lambda w: PNormDecay(w, 0.2, p), lr=a, gradient=g)
    assert decayed(lambda w: PNormDecay(w, 0.2, p, ridge=0.0), lr=a, gradient=g).equal(plain)
    assert decayed(lambda w: PNormDecay(w, 0.2, p, ridge=1e-14), lr=a, gradient=g).allclose(plain, rtol=1e-12)


@pytest.mark.parametrize("p", [*POWERS, 2])
@pytest.mark.parametrize("ridge", [1e-6, 0.3, 1e30])
def test_compiled_and_tensor_ridges_give_the_same_factors(p, ridge, float64):
    w = [torch.tensor(WEIGHTS), torch.tensor([[3.0, 0.0]])]
    for c in (0.0, 0.3, 1e30):
        plain = shrink_factors(w, c, p, ridge=ridge)
        plain = plain if isinstance(plain, list) else [torch.full_like(x, plain) for x in w]
        by_tensor = shrink_factors(w, torch.tensor(c), p, ridge=torch.tensor(ridge))
        for other in (by_tensor, compiled_shrink_factors(w, c, p, ridge)):
            other = other if isinstance(other, list) else [other.expand(x.shape) for x in w]
            assert all(torch.allclose(x, y, rtol=1e-12, atol=0) for x, y in zip(plain, other, strict=True)), c


def test_both_strengths_change_over_time(float64):
    def after(method, steps):
        w = torch.tensor([0.5], requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.1)
        method([w]).attach(optimizer)
        for _ in range(steps):
            w.grad = torch.zeros_like(w)
            optimizer.step()
        return w.item()

    for s in (0.0, 0.2):
        warm = after(lambda w, s=s: PNormDecay(w, s, 1, ridge=0.6, over_time=WarmUp(steps=2)), 1)
        assert warm == pytest.approx(after(lambda w, s=s: PNormDecay(w, s / 3, 1, ridge=0.2), 1)) and warm < 0.5
        early = after(lambda w, s=s: PNormDecay(w, s, 1, ridge=0.6, over_time=Early(steps=1)), 3)
        assert early == after(lambda w, s=s: PNormDecay(w, s, 1, ridge=0.6), 1)


def test_a_ridge_alone_is_corrected_too(compose):
    options = ("regularizer.strength=0", "regularizer.cautious=true", "regularizer/over_time=corrected")
    text = build_parts(compose("regularizer=elastic_pnorm", *options, "model.norm=batch")).regularizer.describe()
    assert ", ridge 0.01, multiplied by the learning rate, cautious, over time Corrected" in text
    assert [line.endswith("corrected") for line in text.splitlines()[1:]] == [True, True, True, False]


def test_the_ridge_is_in_the_penalty_and_in_the_description():
    w = torch.tensor([[0.5, -2.0], [0.0, 1.0]], requires_grad=True)
    assert PNormDecay([w], 0.1, p=1, ridge=0.4).penalty().item() == pytest.approx(0.1 * 3.5 + 0.2 * 5.25)
    assert "strength 0.1, multiplied by the learning rate, ridge 0.4\n" in PNormDecay([w], 0.1, ridge=0.4).describe()
    only = PNormDecay([w], 0.0, ridge=0.4)
    assert not only.is_off
    assert only.describe().startswith("PNormDecay: 1 tensor, 4 values, ridge 0.4, multiplied by the learning rate\n")
    assert PNormDecay([w], 0.0).is_off
    with pytest.raises(ValueError, match="ridge=-1: must be a finite number >= 0"):
        PNormDecay([w], 0.1, ridge=-1)
