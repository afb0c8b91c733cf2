"""What a stack computes from gradients is a number per run, and each run keeps its own: gates, scales, moments."""

import copy
import math

import pytest
import torch

from tests.stacked.test_stack import (
    BIG_EPS,
    CORRECTED,
    COSINE,
    MOVING,
    PLAIN,
    POINTS,
    STEPS,
    assert_nearly_equal,
    configs,
    fit_one_by_one,
    fit_stacked,
    members,
    nearly_equal,
    rows,
    state,
    to_the_last_digits,
)
from wdlab import loop
from wdlab.build import build_experiment
from wdlab.models.mlp import MLP
from wdlab.regularizers import L1, L2, CoherenceGate, ConstrainedRegularization, DecoupledDecay, GradientScale
from wdlab.regularizers.runs import products_of_runs, square_sums_of_runs
from wdlab.schedules import Clock
from wdlab.stacked.eligibility import why_not_stacked
from wdlab.stacked.methods import RowsView, StackedMethod
from wdlab.stacked.network import StackedNetwork
from wdlab.stacked.program import Stack

SIZES = (1.0, 1e-3, 0.0, 1e-30)  # of the gradients of each run
METHODS = {  # methods with a state per run
    "running mean": ("regularizer=coherent", "regularizer.threshold=0.4"),
    "gate over all": ("regularizer=coherent", "regularizer.scope=all", "optimizer.momentum=0.9"),
    "scheduled": ("regularizer=scheduled", "optimizer=adam"),
    "adams": ("regularizer=l1", "optimizer=adams", "optimizer.weight_decay=0.1"),
    "pruned": ("regularizer=magnitude_pruning", "optimizer=adam"),
    "constrained": ("regularizer=cpr", "optimizer=adam"),
    "cautious": ("regularizer=pnorm", "regularizer.cautious=true", "regularizer.p=1", "optimizer=adam"),
    "corrected": ("regularizer=decoupled", *CORRECTED),
    "independent": ("regularizer=cautious", "regularizer/over_time=independent", *COSINE),
    "first": ("regularizer=l1", "regularizer.route=first", *BIG_EPS),
    "second": ("regularizer=l2", "regularizer.route=second", *BIG_EPS),
    "gate over a route": ("regularizer=coherent", "regularizer.route=separate", "regularizer.threshold=0.4", *BIG_EPS),
}


class FourRuns:
    """Four runs of a small MLP, of which a method acts on the last three; with random gradients, set by ``draw``."""

    def __init__(self, make, optimizer=torch.optim.SGD, strengths=(0.5, 2.0, 0.1), **options):
        torch.manual_seed(0)
        self.models = [MLP((1, 2, 3), 3, width=5, depth=3) for _ in SIZES]
        self.runs = [make(model) for model in self.models[1:]]
        self.network = StackedNetwork(self.models)
        self.moments = {"exp_avg_sq": self.network.zeros()}
        numbers = torch.tensor(strengths)
        for run, strength in zip(self.runs, strengths, strict=True):
            run.groups[0]["strength"] = strength
        one = optimizer(self.models[1].parameters(), lr=0.1, **options)
        view = RowsView(one, self.models[1], self.network, slice(1, 4), numbers, self.moments, 0)
        self.stacked = StackedMethod(self.runs, view, Clock())

    def draw(self, seed):
        torch.manual_seed(seed)
        for gradient in self.network.gradient_memory.views:
            for of_run, size in zip(gradient, SIZES, strict=True):
                of_run.copy_(torch.randn_like(of_run) * size)

    def step(self, count):
        self.stacked.before_step(torch.zeros(4, 1, 1), count)
        self.stacked.after_step()
        self.stacked.write_back()


def flat(tensors):
    return torch.cat([t.detach().double().flatten() for t in tensors])


@pytest.mark.parametrize("make", [L1, L2])
@pytest.mark.parametrize("coherence", ["running_mean", "total_gradient", "norm_ratio"])
def test_a_gate_has_the_statistic_of_each_run(coherence, make):
    def method(model):
        return make.for_model(model, 1.0, over_time=CoherenceGate(coherence, threshold=0.2))

    stack = FourRuns(method)
    means = [torch.zeros(1, dtype=torch.float64)] * 3
    for count in range(4):
        stack.draw(count)
        before = copy.deepcopy([(run.params, [p.grad for p in run.params]) for run in stack.runs])
        stack.step(count)
        for k, (run, (weights, gradients)) in enumerate(zip(stack.runs, before, strict=True)):
            g, w = flat(gradients), flat(weights)
            r = run.strength * (w if make is L2 else w.sign())
            other = {"running_mean": means[k], "total_gradient": g + r, "norm_ratio": r}[coherence]
            if coherence == "norm_ratio":
                expected = (g.norm() / r.norm()).item()
            else:
                length = (g.norm() * other.norm()).item()
                expected = (g * other).sum().item() / length if length else 0.0
            means[k] = 0.9 * means[k] + 0.1 * g
            gate = run.over_time[0]
            assert gate.metrics()["gradient/gate"].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
            assert gate.factor(0, {}) == (expected >= 0.2)
            assert run.strength_on_device == run.strength * (expected >= 0.2)
            if coherence == "running_mean":
                saved = gate.state_dict()["means"]
                assert [mean.shape for mean in saved] == [p.shape for p in run.params]
                assert flat(saved).allclose(means[k], rtol=1e-5, atol=1e-6 * means[k].abs().max().item())


def test_the_gradient_scale_of_each_run_is_over_all_its_parameters():
    stack = FourRuns(
        lambda m: DecoupledDecay.for_model(m, 1.0, over_time=GradientScale()), torch.optim.Adam, betas=(0.9, 0.99)
    )
    second = [torch.zeros(1, dtype=torch.float64)] * 3
    for count in range(4):
        stack.draw(count)
        stack.step(count)
        for k, (run, model) in enumerate(zip(stack.runs, stack.models[1:], strict=True)):
            g = flat([p.grad for p in model.parameters()])
            second[k] = 0.99 * second[k] + 0.01 * g**2
            v = second[k].mean().item() / (1 - 0.99 ** (count + 1))
            expected = 1 / math.sqrt(v) if v > 1e-40 else 0.0  # of gradients of 1e-30 float32 has no squares
            assert run.strength_on_device == pytest.approx(run.strength * expected, rel=1e-5)
            saved = run.over_time[0].state_dict()["memory"]
            assert [average["updates"] for average in saved] == [count + 1] * 6
            assert type(saved[0]["mean_square"]) is float


def test_a_scale_survives_gradients_whose_squares_float32_does_not_hold():
    stack = FourRuns(lambda m: DecoupledDecay.for_model(m, 1.0, over_time=GradientScale()), torch.optim.Adam)
    stack.draw(0)
    for gradient in stack.network.gradient_memory.views:
        gradient[1] = 1e25
    stack.step(0)
    assert stack.runs[0].strength_on_device == pytest.approx(0.5 / 1e25)


@pytest.mark.parametrize("options", [{"warm_start": 2}, {"kappa": "inflection", "every": 2}])
def test_the_constraints_of_each_run_are_its_own(options):
    """Three runs whose weights grow at different speeds, next to each of them alone."""

    def grow(tensors, count):
        with torch.no_grad():
            for t in tensors:
                t.mul_(1.5 if count < 5 else 1.2)

    def method(model):
        return ConstrainedRegularization.for_model(model, 1.0, **options)

    stack = FourRuns(method, strengths=(0.01, 0.0, 0.002))
    alone = [copy.deepcopy(model) for model in stack.models[1:]]
    methods = [
        ConstrainedRegularization.for_model(m, s, **options) for m, s in zip(alone, (0.01, 0.0, 0.002), strict=True)
    ]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in alone]
    for one, optimizer in zip(methods, optimizers, strict=True):
        one.attach(optimizer)
    stack.draw(0)
    for count in range(12):
        grow(stack.network.parameters, count)
        stack.step(count)
        for model, optimizer in zip(alone, optimizers, strict=True):
            grow(model.parameters(), count)
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.step()
    for ours, one, model, theirs in zip(stack.runs, methods, stack.models[1:], alone, strict=True):
        assert_nearly_equal(ours.state_dict().get("constraints"), one.state_dict().get("constraints"))
        assert ours.metrics().keys() == one.metrics().keys()
        for name, value in one.metrics().items():
            assert ours.metrics()[name].item() == pytest.approx(value.item(), rel=1e-5)
        for p, q in zip(model.parameters(), theirs.parameters(), strict=True):
            assert p.allclose(q, rtol=1e-5)
    assert [method.metrics()["constraint/active"].item() for method in methods] == [1, 0, 1]


def test_the_sums_of_a_run_do_not_depend_on_its_neighbours():
    torch.manual_seed(0)
    left, right = ([torch.randn(5, *s) for s in ((200, 301), (1, 77), (90, 1), *[(8, 9)] * 30)] for _ in range(2))
    for tensor in left:
        for k, size in enumerate((1e-25, 0.0, 1e25), start=1):  # float32 holds no squares of these
            tensor[k] *= size
    together, squares = products_of_runs(left, right), square_sums_of_runs(left)
    for k in range(5):
        for part in (slice(k, k + 1), slice(k, 5)):
            ours, theirs = [t[part] for t in left], [t[part] for t in right]
            for sums, expected in zip(products_of_runs(ours, theirs), together, strict=True):
                assert sums[0].equal(expected[k]) and expected.isfinite().all()
            assert square_sums_of_runs(ours)[:, 0].equal(squares[:, k])


def train(of, folder, until=None, **options):
    """Train a stack, to an interrupt after so many updates if ``until`` is given."""
    found = members(of, folder, **options)
    for config, member in zip(of, found, strict=True):
        member.method_key = str((config["regularizer"], config["optimizer"].get("weight_decay") is None))
        for strength in ("0.5", "0.1", "0.01", "0.001", "0.0"):
            member.method_key = member.method_key.replace(f"'strength': {strength}", "")
    asked = iter(range(10**6))
    program = Stack(found, of[0]["train"])
    stop = (lambda: next(asked) >= until - 1) if until else (lambda: False)
    loop.fit(program, of[0]["train"], float("inf"), stop)
    for member in found:
        member.recorder.close()
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_run_goes_on_exactly_in_its_stack_or_another_and_nearly_alone(name, compose, tmp_path):
    of = configs(compose, *METHODS[name], points=MOVING)
    whole = train(of, tmp_path / "whole")
    for folder, parts in {"same": [[0, 1, 2, 3]], "other": [[2], [3, 0, 1]], "third": [[1, 3], [0, 2]]}.items():
        train(of, tmp_path / folder, until=3)
        for part in parts:
            resumed = train([of[k] for k in part], tmp_path / folder, start=True)
            for ours, k in zip(resumed, part, strict=True):
                of_whole = rows(whole[k])
                lines = of_whole if folder == "same" else [to_the_last_digits(row) for row in of_whole]
                assert ours.first == 3 and rows(ours) == lines
                assert str(state(ours)) == str(state(whole[k]))
                for p, q in zip(*(m.experiment.model.parameters() for m in (ours, whole[k])), strict=True):
                    assert p.equal(q)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_goes_on_alone_from_a_stack_and_in_a_stack_from_alone(name, compose, tmp_path):
    of = configs(compose, *METHODS[name], points=MOVING)
    alone = fit_one_by_one(of, tmp_path / "whole")
    train(of, tmp_path / "stack", until=3)
    fit_one_by_one(of, tmp_path / "alone", until=3)
    for resumed in (fit_one_by_one(of, tmp_path / "stack", start=True), train(of, tmp_path / "alone", start=True)):
        for ours, theirs in zip(resumed, alone, strict=True):
            assert ours.first == 3
            for row, expected in zip(rows(ours), rows(theirs), strict=True):
                assert row == nearly_equal(expected)
            assert_nearly_equal(state(ours), state(theirs))


MIXED = {  # methods that share a stack, each with its optimizer's kind
    "sgd": [
        ("regularizer=coherent", "regularizer.threshold=0.4"),
        ("regularizer=coherent", "regularizer.threshold=0.1", "regularizer.penalty=l1"),
        PLAIN,
        ("regularizer=scheduled",),
    ],
    "adam": [
        ("regularizer=l2", "regularizer.route=separate"),
        ("regularizer=l1", "regularizer.route=second"),
        ("regularizer=scheduled", "regularizer.scope=all"),
        ("regularizer=coherent", "regularizer.coherence=norm_ratio"),
        ("regularizer=magnitude_pruning", "regularizer.zeros=0.5"),
        ("regularizer=magnitude_pruning", "regularizer.zeros=0.9"),
        ("regularizer=elastic_pnorm", "regularizer.ridge=0.1"),
        ("regularizer=huber", "regularizer.delta=0.05"),
        ("regularizer=cpr",),
    ],
    "adams": [PLAIN, ("regularizer=none",), ("regularizer=coherent", "regularizer.route=first")],
}


@pytest.mark.parametrize("optimizer", MIXED)
def test_groups_of_methods_share_a_stack(optimizer, compose, tmp_path):
    options = [f"optimizer={optimizer}", *(() if optimizer == "sgd" else ("optimizer.eps=0.1",))]
    of = [c for method in MIXED[optimizer] for c in configs(compose, *options, *method, points=POINTS[1:3])]
    kinds = [str(method) for method in MIXED[optimizer] for _ in range(2)]
    together, apart = fit_stacked(of, tmp_path / "stack", kinds), fit_one_by_one(of, tmp_path / "single")
    assert_same_runs(together, apart)
    for k, ours in enumerate(together):  # a strength that depends on no gradient is no matter of rounding
        if of[k]["regularizer"]["name"] in ("l1", "l2"):
            assert {row["strength"] for row in rows(ours)} == {of[k]["regularizer"]["strength"]}


def test_adams_decays_each_run_by_its_own_strength(compose, tmp_path):
    points = [(f"optimizer.weight_decay={d}", f"seed={seed}") for seed, d in enumerate((0.0, 0.05, 5e-4))]
    of = configs(compose, "optimizer=adams", "optimizer.lr=0.02", points=points)
    together, apart = fit_stacked(of, tmp_path / "stack"), fit_one_by_one(of, tmp_path / "single")
    assert_same_runs(together, apart)
    norms = [rows(member)[-1]["norm/weight_l2"] for member in together]
    assert norms[1] < 0.8 * norms[2]


def assert_same_runs(together, apart):
    for ours, theirs in zip(together, apart, strict=True):
        assert ours.outcome == theirs.outcome == "done" and len(rows(ours)) == STEPS + 1
        for row, expected in zip(rows(ours), rows(theirs), strict=True):
            assert row == nearly_equal(expected)
        assert_nearly_equal(state(ours), state(theirs))


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_diverges_leaves_the_others_as_they_are(name, compose, tmp_path):
    of = configs(compose, *METHODS[name], points=[*MOVING[:3], ("seed=3", "optimizer.lr=1e20")])
    with_it, without = train(of, tmp_path / "with"), train(of[:3], tmp_path / "without")
    assert [member.outcome for member in with_it] == [None, None, None, "diverged"]
    for ours, theirs in zip(with_it, without, strict=False):
        assert rows(ours) == [to_the_last_digits(row) for row in rows(theirs)]
        assert str(state(ours)) == str(state(theirs))


@pytest.mark.parametrize(
    "overrides, told",
    [
        (("optimizer=adam", "+optimizer.amsgrad=true", "regularizer=scheduled"), "amsgrad with a gradient scale"),
        (("optimizer=adams", "optimizer.amsgrad=true"), "optimizer.amsgrad"),
    ],
)
def test_what_has_no_form_for_several_runs_is_refused(compose, overrides, told):
    config = compose(*overrides)
    assert told in why_not_stacked(config, build_experiment(config))
