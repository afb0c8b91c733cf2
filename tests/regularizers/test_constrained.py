"""Constrained parameter regularization: closed forms of one weight, when a bound is set, its state and metrics."""

import copy
import itertools
import math

import pytest
import torch

from tests.problem import through_a_file
from wdlab.build import build_parts
from wdlab.errors import ConfigError
from wdlab.regularizers import ConstrainedRegularization, Delayed, Early
from wdlab.schedules import Clock


def path(weights, make, steps, lr=0.1, gradient=-1.0):
    """Return the values of a tensor after each step of SGD with a constant gradient, the method, and the optimizer."""
    w = torch.tensor(weights, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=lr)
    method = make([w])
    method.attach(optimizer)
    values = []
    for _ in range(steps):
        w.grad = torch.full_like(w, gradient)
        optimizer.step()
        values.append(w.tolist())
    return values, method, optimizer


def test_the_rule_of_one_weight(float64):
    """The weight grows by 0.1 in each step; its bound is its square after the second, 0.36."""
    s, (values, method, _) = 0.25, path([0.4], lambda w: ConstrainedRegularization(w, 0.25, warm_start=2), 4)
    assert values[:2] == [pytest.approx([0.5]), pytest.approx([0.6])]
    m = 0.7**2 - 0.36
    third = 0.7 * (1 - 2 * s * m)
    assert values[2] == pytest.approx([third])
    u = third + 0.1
    m = max(0.0, m + u**2 - 0.36)
    assert values[3] == pytest.approx([u * (1 - 2 * s * m)])
    assert method.metrics()["constraint/multiplier"].item() == pytest.approx(m)


def test_a_multiplier_integrates_the_excess_and_is_never_negative(float64):
    """The weights fall, so that there is no excess; then they grow past their bound."""
    values, method, optimizer = path(
        [2.0, -1.0], lambda w: ConstrainedRegularization(w, 1.0, warm_start=1), 5, gradient=0.0
    )
    (w,) = method.params
    assert values[-1] == [2.0, -1.0] and method.metrics()["constraint/multiplier"] == 0
    for value, m in ((1.0, 0.0), (2.2, (2.2**2 + 1) / 2 - 2.5), (2.1, (2.2**2 + 2.1**2 + 2) / 2 - 5), (1.0, 0.0)):
        with torch.no_grad():
            w[0], w[1] = value, -1.0
        w.grad = torch.zeros_like(w)
        optimizer.step()
        assert method.metrics()["constraint/multiplier"].item() == pytest.approx(m)
        assert w.tolist() == pytest.approx([value * max(0, 1 - 2 * m), -max(0, 1 - 2 * m)])


def test_the_weights_end_at_the_bound_where_the_loss_pulls_outwards(float64):
    """A constraint that is active at the optimum: the loss is ``-w``, and ``w^2 <= kappa`` with ``kappa = 0.36``."""
    values, method, _ = path([0.5], lambda w: ConstrainedRegularization(w, 0.2, warm_start=1), 400, lr=0.01)
    kappa = values[0][0] ** 2
    assert values[-1][0] ** 2 == pytest.approx(kappa, rel=0.05)
    assert method.metrics()["constraint/active"] == 1


def test_weights_below_their_bound_are_left_alone():
    values, method, _ = path([1.0, -2.0], lambda w: ConstrainedRegularization(w, 5.0, warm_start=1), 3, gradient=0.0)
    assert values[-1] == [1.0, -2.0]
    assert {name: value.item() for name, value in method.metrics().items()} == {
        "constraint/active": 0.0,
        "constraint/multiplier": 0.0,
    }


def test_a_factor_that_would_be_negative_is_zero(float64):
    values, *_ = path([1.0], lambda w: ConstrainedRegularization(w, 100.0, warm_start=1), 2, lr=1.0)
    assert values == [[2.0], [0.0]]


def test_the_learning_rate_does_not_multiply_the_decay(float64):
    for lr in (1e-3, 1e-1):
        w = torch.tensor([1.0], requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=lr)
        method = ConstrainedRegularization([w], 0.3, warm_start=1)
        method.attach(optimizer)
        for value in (1.0, 1.2):
            with torch.no_grad():
                w[0] = value
            w.grad = torch.zeros_like(w)
            optimizer.step()
        assert w.item() == pytest.approx(1.2 * (1 - 2 * 0.3 * 0.44))
        assert "not multiplied by the learning rate" in method.describe()


# -- when the bounds are set


def kappas(method):
    return [state[1].item() for state in method._states.values()]


@pytest.mark.parametrize(
    ("warm_start", "length", "expected"), [(3, None, 3), (3, 10, 3), (3.0, None, 3), (0.3, 10, 3), (0.01, 10, 1)]
)
def test_the_warm_start_is_a_number_of_updates_or_a_share_of_the_run(warm_start, length, expected, float64):
    def make(w):
        method = ConstrainedRegularization(w, 0.1, warm_start=warm_start)
        method.clock = Clock(length, 1)
        return method

    _, method, _ = path([0.0], make, 6)
    assert kappas(method) == [pytest.approx((0.1 * expected) ** 2)]


def growing(norms, every):
    """Return the bound after each step of a tensor that has these root mean squares."""
    w = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    method = ConstrainedRegularization([w], 1e-3, kappa="inflection", every=every)
    method.attach(optimizer)
    found = []
    for norm in norms:
        with torch.no_grad():
            w.fill_(norm)
        w.grad = torch.zeros_like(w)
        optimizer.step()
        found.append(kappas(method)[0])
    return found


def test_the_bound_is_set_where_the_norm_slows_down(float64):
    """With ``every=2`` the average is the norm itself, sampled after updates 4, 6, 8 ..."""
    slowing = [1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]  # growth 2/3 at 6, 2/5 at 8
    assert growing(slowing, 2) == [math.inf] * 7 + [pytest.approx(25.0)] * 3
    speeding = [1.0] * 5 + [1.1, 1.2, 1.3, 2.0, 4.0, 4.0, 6.0]  # 0.09 at 6, 0.15 at 8, 0.68 at 10, 1/3 at 12
    assert growing(speeding, 2) == [math.inf] * 11 + [pytest.approx(36.0)]
    assert growing([1.0] * 5 + [1.02, 1.02, 1.025, 1.0, 1.0], 2) == [math.inf] * 10  # growth of 0.5 % does not count


def test_the_average_spans_half_the_distance_of_the_samples(float64):
    every, norms = 10, torch.linspace(1, 3, 50).sqrt().tolist()
    averages, average = [], 0.0
    for step, norm in enumerate(norms, start=1):
        average = norm if step < every else average + 2 / every * (norm - average)
        averages.append(average)
    samples = averages[2 * every - 1 :: every]
    growths = [(b - a) / b for a, b in itertools.pairwise(samples)]
    assert growths[0] > growths[1] > 0.01
    first = 2 * every + 2 * every
    assert growing(norms, every)[first - 2 : first] == [math.inf, pytest.approx(norms[first - 1] ** 2)]


def test_a_parameter_that_comes_later_gets_a_bound_of_its_own(float64):
    _, method, optimizer = path([1.0], lambda w: ConstrainedRegularization(w, 0.1, warm_start=2), 4)
    late = torch.tensor([5.0], requires_grad=True)
    optimizer.add_param_group({"params": [late]})
    method.add_param_group({"params": [late]})
    for p in method.params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert kappas(method) == [pytest.approx(1.2**2), 25.0]


def test_nothing_changes_in_a_step_of_strength_zero(float64):
    def states(over_time, steps):
        method = path([1.0], lambda w: ConstrainedRegularization(w, 0.1, warm_start=1, over_time=over_time), steps)[1]
        return [state.tolist() for state in method._states.values()]

    assert states(Delayed(steps=4), 4) == []
    assert states(Delayed(steps=4), 5)[0][1] == pytest.approx(1.5**2)  # the first step with a strength
    assert states(Early(steps=3), 9) == states(Early(steps=3), 3) and states(Early(steps=3), 3)[0][0] > 0


# -- its state, metrics and texts


def test_a_resumed_method_is_the_same_to_the_last_bit():
    for options in ({"warm_start": 2}, {"kappa": "inflection", "every": 2}):
        w = torch.tensor([[0.1, -0.2]], requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.05)
        method = ConstrainedRegularization([w], 0.3, **options)
        method.attach(optimizer)
        saved = []
        for step in range(14):
            if step == 7:
                saved = copy.deepcopy(w.data), through_a_file(method.state_dict())
            w.grad = -torch.ones_like(w)
            optimizer.step()
        assert method.metrics()["constraint/active"] == 1
        v = saved[0].requires_grad_()
        optimizer = torch.optim.SGD([v], lr=0.05)
        other = ConstrainedRegularization([v], 9.0, **options)
        other.load_state_dict(saved[1])
        other.attach(optimizer)
        for _ in range(7):
            v.grad = -torch.ones_like(v)
            optimizer.step()
        assert v.equal(w) and str(other.state_dict()) == str(method.state_dict())


def test_penalty_and_its_gradient_are_those_of_the_multipliers(float64):
    _, method, _ = path([0.4, 0.1], lambda w: ConstrainedRegularization(w, 0.25, warm_start=1), 4)
    (w,), m = method.params, method.metrics()["constraint/multiplier"].item()
    assert m > 0
    assert method.penalty().item() == pytest.approx(0.25 * m * w.square().sum().item())
    assert method.penalty_gradient([w])[0].tolist() == pytest.approx((2 * m * w).tolist())
    fresh = ConstrainedRegularization([w], 0.25)
    assert fresh.penalty() == 0 and fresh.penalty_gradient([w])[0].tolist() == [0.0, 0.0]
    assert not method.has_objective


def test_a_cautious_method_decays_only_inwards(float64):
    def final(cautious):
        w = torch.tensor([1.0, 1.0], requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.1)
        ConstrainedRegularization([w], 0.3, warm_start=1, cautious=cautious).attach(optimizer)
        for gradient in ([0.0, 0.0], [-3.0, 1.0]):
            w.grad = torch.tensor(gradient)
            optimizer.step()
        return w.tolist()

    share = 1 - 2 * 0.3 * ((1.3**2 + 0.9**2) / 2 - 1)
    assert final(False) == pytest.approx([1.3 * share, 0.9 * share])
    assert final(True) == pytest.approx([1.3, 0.9 * share])


def test_it_says_when_the_bounds_are_set():
    w = torch.ones(3, requires_grad=True)
    assert ", bounds after 10 % of the run\n" in ConstrainedRegularization([w]).describe()
    assert ", bounds after 50 updates\n" in ConstrainedRegularization([w], warm_start=50).describe()
    assert "strength 1, not multiplied by the learning rate, " in ConstrainedRegularization([w]).describe()
    by_inflection = ConstrainedRegularization([w], kappa="inflection").describe()
    assert ", bounds by inflection, every 200 updates\n" in by_inflection
    assert ConstrainedRegularization([w], 0.0).describe() == "ConstrainedRegularization: decays nothing, strength 0"


def test_without_a_strength_it_is_that_of_the_paper(compose):
    assert ConstrainedRegularization.for_model(torch.nn.Linear(2, 2)).strength == 1.0
    assert build_parts(compose("regularizer=cpr", "regularizer.strength=null")).regularizer.strength == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": "dependent"}, "kappa='dependent': must be one of warm_start, inflection"),
        ({"warm_start": 0}, "warm_start=0: must be a finite number > 0"),
        ({"every": 1}, "every=1: must be at least 2 updates, or a share of the run less than 1"),
        ({"warm_start": 2.5}, "warm_start=2.5: must be a whole number of updates, or less than 1, a share"),
        ({"every": 2.7}, "every=2.7: must be a whole number of updates"),
        ({"every": -0.1}, "every=-0.1: must be a finite number > 0"),
        ({"cautious": 1}, "cautious=1: must be true or false"),
    ],
)
def test_a_bad_argument_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ConstrainedRegularization([torch.zeros(2, requires_grad=True)], 0.1, **options)


def test_a_share_needs_the_length_of_the_run():
    w = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    with pytest.raises(ValueError, match=r"warm_start=0.1: a share of the run needs its length; give a number"):
        ConstrainedRegularization([w]).attach(optimizer)
    with pytest.raises(ValueError, match=r"every=0.1: a share of the run needs its length"):
        ConstrainedRegularization([w], kappa="inflection", every=0.1).attach(optimizer)
    ConstrainedRegularization([w], 0.0).attach(optimizer)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("regularizer.warm_start=20",), "warm_start=20: nothing is decayed before update 21, and the run has 20"),
        (("regularizer.kappa=inflection",), "every=200: nothing is decayed before update 801, and the run has 20"),
        (("regularizer.kappa=inflection", "regularizer.every=0.25"), "every=0.25: nothing is decayed before update 21"),
    ],
)
def test_a_run_that_is_too_short_is_refused_before_it_begins(overrides, message, compose):
    with pytest.raises(ConfigError, match=message):
        build_parts(compose("regularizer=cpr", "train.steps=20", *overrides))
    build_parts(compose("regularizer=cpr", "train.steps=20", "regularizer.strength=0", *overrides))
