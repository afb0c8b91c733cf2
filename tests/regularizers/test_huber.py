"""Huber decay: closed forms, brute force, limits."""

import pytest
import torch

from tests.regularizers.test_pnorm import decayed
from wdlab.regularizers import DecoupledDecay, HuberDecay, PNormProx
from wdlab.regularizers.penalties import Huber

WEIGHTS = [0.0, 1e-20, -1e-6, 0.03, -0.1, 0.11, -0.2, 1.0, -20.0]


def test_a_small_weight_shrinks_by_a_factor_and_a_large_one_by_a_length(float64):
    a, s, delta = 0.5, 0.4, 0.1
    after = decayed(lambda w: HuberDecay(w, s, delta), [0.05, -0.119, 0.121, -3.0], lr=a)
    assert after.tolist() == pytest.approx([0.05 / 1.2, -0.119 / 1.2, 0.121 - 0.02, -3.0 + 0.02], rel=1e-15)


def test_both_branches_meet_where_the_new_weight_is_delta(float64):
    edge = 1.2 * 0.1
    below, at, above = decayed(lambda w: HuberDecay(w, 0.4, 0.1), [edge - 1e-9, edge, edge + 1e-9], lr=0.5).tolist()
    assert at == pytest.approx(0.1, rel=1e-15) and 0 < at - below < above - at < 1.1e-9


@pytest.mark.parametrize("s", [0.01, 0.6, 50.0])
def test_the_step_minimizes_its_objective(s, float64):
    """``argmin_z (z - u)^2 / 2 + t H(z)`` by brute force on a grid."""
    a, delta = 0.5, 0.1
    after = decayed(lambda w: HuberDecay(w, s, delta), WEIGHTS, lr=a)
    for u, z in zip(WEIGHTS, after.tolist(), strict=True):
        grid = torch.linspace(-1.2 * abs(u), 1.2 * abs(u), 400_001)
        inner = grid.abs().clamp(max=delta)
        best = grid[((grid - u).square() / 2 + a * s * inner * (grid.abs() - inner / 2)).argmin()]
        assert z == pytest.approx(best.item(), abs=1e-5 * max(abs(u), 1e-12))


@pytest.mark.parametrize("delta", [1e3, 1e30, 1e300])
def test_a_large_delta_is_decoupled_decay(delta):
    a, s = 0.1, 0.3
    after = decayed(lambda w: HuberDecay(w, s, delta), WEIGHTS, lr=a, gradient=0.2)
    expected = [(w - a * 0.2) / (1 + a * s) for w in WEIGHTS]
    assert after.tolist() == pytest.approx(expected, rel=1e-6)
    explicit = decayed(lambda w: DecoupledDecay(w, s), WEIGHTS, lr=a)  # the same to first order
    assert decayed(lambda w: HuberDecay(w, s, delta), WEIGHTS, lr=a).tolist() == pytest.approx(
        explicit.tolist(), rel=2 * (a * s) ** 2
    )


def test_a_vanishing_delta_is_the_soft_threshold(float64):
    """With ``t delta`` fixed, here to 0.05."""
    a, delta = 0.1, 1e-12
    after = decayed(lambda w: HuberDecay(w, 0.5 / delta, delta), WEIGHTS, lr=a, gradient=0.2)
    soft = decayed(lambda w: PNormProx(w, 0.5, 1), WEIGHTS, lr=a, gradient=0.2)
    assert after.tolist() == pytest.approx(soft.tolist(), abs=1.1 * delta)


def test_penalty_and_gradient(float64):
    w = torch.tensor([0.0, 0.3, -0.7, 2.0], requires_grad=True)
    assert HuberDecay([w], 0.1, 0.5).penalty().item() == pytest.approx(
        0.1 * (0.3**2 / 2 + 0.5 * (0.7 - 0.25) + 0.5 * 1.75)
    )
    assert Huber(0.5).gradient([w])[0].tolist() == [0.0, 0.3, -0.5, 0.5]
    h, values = 1e-6, w.detach()
    for i, slope in enumerate(Huber(0.5).gradient([values])[0].tolist()):
        step = torch.zeros(4)
        step[i] = h
        difference = (Huber(0.5).value([values + step]) - Huber(0.5).value([values - step])) / (2 * h)
        assert slope == pytest.approx(difference.item(), abs=1e-6)


def test_groups_have_a_delta_of_their_own(float64):
    a, b = (torch.full((2,), 2.0, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([a, b], lr=0.1)
    method = HuberDecay([{"params": [a], "delta": 0.5}, {"params": [b], "strength": 0.4}], 0.2)
    method.attach(optimizer)
    assert [slope.tolist() for slope in method.penalty_gradient([b, a])] == [[0.1] * 2, [0.5] * 2]
    a.grad, b.grad = torch.zeros(2), torch.zeros(2)
    optimizer.step()
    assert a.tolist() == pytest.approx([2 - 0.1 * 0.2 * 0.5] * 2)
    assert b.tolist() == pytest.approx([2 - 0.1 * 0.4 * 0.1] * 2)


def test_a_cautious_step_is_taken_only_inwards(float64):
    """Of these weights a gradient of 1 moves the first two towards zero, the others away from it."""
    weights, a, s = [0.05, 3.0, -0.05, -3.0], 0.01, 2.0
    all_of_them = decayed(lambda w: HuberDecay(w, s), weights, lr=a, gradient=1.0).tolist()
    cautious = decayed(lambda w: HuberDecay(w, s, cautious=True), weights, lr=a, gradient=1.0).tolist()
    assert cautious == pytest.approx([*all_of_them[:2], -0.06, -3.01]) and cautious[:2] == all_of_them[:2] != [
        0.04,
        2.99,
    ]
    assert HuberDecay([torch.ones(1)], 0.1).has_objective
    assert not HuberDecay([torch.ones(1)], 0.1, cautious=True).has_objective


@pytest.mark.parametrize("delta", [0, -1.0, float("nan"), "1", True])
def test_a_bad_delta_is_refused(delta):
    with pytest.raises(ValueError, match=r"delta=.*: must be a (finite )?number > 0"):
        HuberDecay([torch.zeros(2, requires_grad=True)], 0.1, delta=delta)
