"""The quartic loss on one weight: closed forms of gradient flow, and simulated weights against them."""

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar

from wdlab.studies.quartic import critical_strength, critical_strengths, end_points, fixed_point, minimum


def slope(w, p, s):
    return (w - 1) ** 3 + s * w ** (p - 1)


@pytest.mark.parametrize("p", [0.3, 0.5, 0.7, 0.8])
def test_below_its_critical_strength_a_start_ends_at_the_larger_root_and_above_it_at_zero(p):
    for start in (1e-4, 1e-2, 0.3, 1.0):
        s = critical_strength(p, start)
        assert fixed_point(p, 1.01 * s, start) == fixed_point(p, s, start) == 0
        end = fixed_point(p, 0.99 * s, start)
        assert slope(end, p, 0.99 * s) == pytest.approx(0, abs=1e-12)
        assert brentq(slope, end - 1e-6, end + 1e-6, args=(p, 0.99 * s)) == pytest.approx(end, abs=1e-12)
        assert slope(0.99 * end, p, 0.99 * s) < 0 < slope(1.01 * end, p, 0.99 * s)  # it attracts


def test_the_critical_strength_is_the_least_one_that_pulls_the_weight_down_all_the_way():
    for p, start in ((0.5, 1e-3), (0.7, 0.05), (0.7, 0.5)):
        below = np.geomspace(1e-9, start, 20_001)
        assert critical_strength(p, start) == pytest.approx(((1 - below) ** 3 * below ** (1 - p)).max(), rel=1e-6)


@pytest.mark.parametrize("p", [0.5, 0.7, 0.8])
def test_for_small_starts_the_critical_strength_grows_with_exponent_1_minus_p(p):
    exponents = [np.log(critical_strength(p, 2 * w) / critical_strength(p, w)) / np.log(2) for w in (1e-3, 1e-5, 1e-7)]
    errors = np.abs(np.array(exponents) - (1 - p))
    assert (errors[1:] < 0.02 * errors[:-1]).all() and errors[-1] < 1e-6  # the error is 3 w to first order


def test_the_minimum_is_the_least_value_of_the_objective():
    def objective(w, s):
        return (w - 1) ** 4 / 4 + s / 0.7 * w**0.7

    for s in (0.05, 0.2, 0.32, 0.34, 0.5):
        inner = minimize_scalar(objective, args=(s,), bounds=(0.08, 1), method="bounded", options={"xatol": 1e-10})
        best = inner.x if inner.fun < objective(0.0, s) else 0.0
        assert minimum(0.7, s) == pytest.approx(best, abs=1e-6)


def test_simulated_weights_end_where_gradient_flow_does():
    rows = end_points(0.7, [1e-4, 1e-2, 1.0], [0.02, 0.06, 0.07, 0.2, 0.3, 0.4], 0.9, 1000)
    assert len(rows) == 18 and list(rows["seed"]) == list(range(18))
    assert rows["distance"].max() < 1e-9
    assert ((rows["weight"] == 0) == (rows["fixed_point"] == 0)).all()
    alive = rows[rows["weight"] > 0].groupby("start")["s"].max()
    assert dict(alive) == {1e-4: 0.06, 1e-2: 0.2, 1.0: 0.3}


def test_the_bisected_critical_strength_is_that_of_gradient_flow():
    rows = critical_strengths([0.5, 0.8], [1e-6, 1e-4, 1e-2, 1.0], 1e-4, 0.9, 400, 1e-3)
    assert list(rows["seed"]) == list(range(8))
    assert rows["critical_error"].abs().max() < 1.1e-3
    assert np.abs(rows["exponent"] - (1 - rows["p"])).max() < 2e-3
    exact = [critical_strength(p, start) for p, start in zip(rows["p"], rows["start"], strict=True)]
    np.testing.assert_allclose(rows["flow"], exact, atol=1e-9)


@pytest.mark.parametrize(("p", "start"), [(1.0, 0.5), (0.0, 0.5), (0.7, 0.0), (0.7, 1.5)])
def test_exponents_and_starts_out_of_range_are_refused(p, start):
    with pytest.raises(ValueError, match=r"p must be in \(0, 1\), start in \(0, 1\]"):
        fixed_point(p, 0.1, start)
