"""Corrected and independent decay: closed forms, the peak of the learning rate wherever it comes from, the scope."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tests.problem import problem, same, steps, through_a_file, twin_of
from wdlab.build import build_parts
from wdlab.errors import ConfigError
from wdlab.homogeneous import normalized_weights
from wdlab.metrics.gradients import GradientComparison
from wdlab.regularizers import L2, ConstrainedRegularization, Corrected, DecoupledDecay, Early, Independent, PathProx
from wdlab.schedules import Clock, cosine, multistep
from wdlab.validation import check_config

BOTH = {"corrected": lambda **o: Corrected("all", **o), "independent": Independent}
both = pytest.mark.parametrize("make", BOTH.values(), ids=BOTH)


def one_weight(over_time, lr=0.5, strength=0.5, optimizer=torch.optim.SGD):
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    own = optimizer([w], lr=lr)
    method = DecoupledDecay([w], strength, over_time=over_time)
    method.attach(own)
    w.grad = torch.zeros_like(w)
    return w, own, method


def norm_net():
    """A net in which the first two of four layers are normalized."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)),
    )


def factors_of(method, optimizer, lrs):
    """Return the factor in force after a step at each learning rate."""
    found = []
    for lr in lrs:
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        found.append(method.strength_in_force / method.strength)
    return found


def test_corrected_decay_in_closed_form():
    w, optimizer, method = one_weight(Corrected("all"))
    assert factors_of(method, optimizer, [0.5, 0.25, 0.125, 0.0]) == [1.0, 0.5, 0.25, 0.0]
    assert w.item() == (1 - 0.5 * 0.5) * (1 - 0.25 * 0.25) * (1 - 0.125 * 0.125)


def test_independent_decay_in_closed_form():
    w, optimizer, method = one_weight(Independent())
    assert factors_of(method, optimizer, [0.5, 0.25, 0.125]) == [2.0, 2.0, 2.0]
    assert w.item() == (1 - 0.5) * (1 - 0.25) * (1 - 0.125)


def test_at_a_constant_learning_rate_corrected_decay_is_the_plain_one_and_independent_decay_one_of_strength_s_over_a():
    of = []
    for over_time, strength in ((None, 0.5), (Corrected("all"), 0.5), (Independent(), 0.125)):
        model, inputs, labels = problem()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.25)
        DecoupledDecay.for_model(model, strength, over_time=over_time).attach(optimizer)
        steps(model, optimizer, inputs, labels, 5)
        of.append(model)
    assert same(of[0], of[1]) and same(of[0], of[2])


def test_independent_decay_takes_as_much_at_any_peak():
    ends = []
    for lr in (0.001, 0.1, 4.0):
        w, optimizer, method = one_weight(Independent(), lr=lr)
        factors_of(method, optimizer, [lr * share for share in (1.0, 0.5, 0.1)])
        ends.append(w.item())
    assert ends == pytest.approx([0.5 * 0.75 * 0.95] * 3, rel=1e-14)


# -- the peak ----------------------------------------------------------------------------------------------------------

SCHEDULERS = {  # by torch, and the learning rates of their first steps
    "warm-up": (lambda o: lr_scheduler.LinearLR(o, 0.25, 1.0, total_iters=3), 0.5),
    "cosine": (lambda o: lr_scheduler.CosineAnnealingLR(o, 10), 0.5),
    "one cycle": (lambda o: lr_scheduler.OneCycleLR(o, max_lr=2.0, total_steps=10), 2.0),
}


@pytest.mark.parametrize("first", ["scheduler", "method"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_peak_is_that_of_torchs_schedulers_whichever_is_made_first(name, first):
    make, peak = SCHEDULERS[name]
    w = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.5)
    scheduler = make(optimizer) if first == "scheduler" else None
    method = DecoupledDecay([w], 0.1, over_time=Corrected("all"))
    method.attach(optimizer)
    scheduler = scheduler or make(optimizer)
    w.grad = torch.zeros(1)
    for _ in range(8):
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        assert method.strength_in_force == pytest.approx(0.1 * lr / peak)
        scheduler.step()


def test_a_given_peak_counts_before_all_others():
    _, optimizer, method = one_weight(Corrected("all", peak_lr=4.0))
    optimizer.param_groups[0]["initial_lr"] = 8.0
    assert factors_of(method, optimizer, [2.0, 1.0]) == [0.5, 0.25]


@both
def test_groups_of_the_optimizer_have_peaks_of_their_own(make):
    a, b, c = (torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 0.5}, {"params": [b], "lr": 2.0}])
    method = DecoupledDecay([a, b], 0.5, over_time=make())
    method.attach(optimizer)
    optimizer.add_param_group({"params": [c], "lr": 0.25})
    method.add_param_group({"params": [c]})
    for step in range(2):
        for p in (a, b, c):
            p.grad = torch.zeros_like(p)
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] /= 2
        if step == 0:
            first = [p.item() for p in (a, b, c)]
    if isinstance(method.over_time[0], Corrected):
        assert first == [0.75, 0.0, 0.875]
        assert [p.item() for p in (a, c)] == [0.75 * (1 - 0.5 * 0.25 / 2), 0.875 * (1 - 0.5 * 0.125 / 2)]
    else:
        assert first == [0.5] * 3 and [p.item() for p in (a, b, c)] == [0.375] * 3


@both
def test_the_description_has_the_peak(make):
    def summary(method):
        return method.describe().splitlines()[0]

    _, optimizer, method = one_weight(make())
    assert summary(method).endswith(f"over time {method.over_time[0]!r}, optimizer's peak learning rate 0.5")
    lr_scheduler.OneCycleLR(optimizer, max_lr=2.0, total_steps=10)
    assert summary(method).endswith(", optimizer's peak learning rate 2")
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer.add_param_group({"params": [w], "lr": torch.tensor(0.25)})
    method.add_param_group({"params": [w]})
    assert summary(method).endswith(", optimizer's peak learning rate 0.25 to 2")
    _, _, given = one_weight(make(peak_lr=4.0))
    assert "peak_lr=4)" in summary(given) and "optimizer's" not in summary(given)
    new = DecoupledDecay([w], 0.5, over_time=make())
    assert summary(new).endswith(", optimizer's peak learning rate not known yet")
    new.attach(torch.optim.SGD([w], lr=8.0))
    new.load_state_dict({**new.state_dict(), "over_time": [{"lrs": [0.125]}]})
    assert summary(new).endswith(", optimizer's peak learning rate 0.125")


def test_a_run_says_its_peak_before_its_first_step(compose):
    schedule = ("lr_schedule=cosine", "lr_schedule.warmup_epochs=99")  # never at its top
    config = compose("regularizer=decoupled", "regularizer/over_time=independent", *schedule, "optimizer.lr=10")
    built = check_config(config)
    peak = 10 * max(cosine(step, 20, 18, 99) for step in range(20))
    assert built.regularizer.describe().splitlines()[0].endswith(f", optimizer's peak learning rate {peak:g}")


@both
def test_a_peak_of_zero_is_refused(make, compose):
    with pytest.raises(
        ValueError, match=r"over_time=.*: the peak learning rate of the optimizer is 0; give it as peak_lr"
    ):
        one_weight(make(), lr=0.0)
    one_weight(make(peak_lr=0.1), lr=0.0)
    name = "corrected" if isinstance(make(), Corrected) else "independent"
    with pytest.raises(ConfigError, match=r"regularizer\.over_time=.*: the peak learning rate of the optimizer is 0"):
        build_parts(compose("regularizer=l2", f"regularizer/over_time={name}", "model.norm=batch", "optimizer.lr=0"))


@both
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "high", True])
def test_a_bad_peak_is_refused(make, value):
    with pytest.raises(ValueError, match="peak_lr="):
        make(peak_lr=value)


@both
def test_a_learning_rate_above_its_assumed_peak_is_refused_in_the_step(make):
    _, optimizer, _ = one_weight(make(), lr=0.01)
    optimizer.param_groups[0]["lr"] = 0.01 * (1 + 1e-9)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.208
    with pytest.raises(RuntimeError, match=r"learning rate 0\.208 is above its assumed peak 0\.01; give peak_lr"):
        optimizer.step()
    _, optimizer, _ = one_weight(make(peak_lr=0.1), lr=0.01)
    optimizer.param_groups[0]["lr"] = 0.208
    with pytest.raises(RuntimeError, match=r"is above its given peak 0\.1; give a larger peak_lr"):
        optimizer.step()


@both
def test_a_cyclic_schedule_needs_its_peak(make):
    def climb(over_time):
        _, optimizer, method = one_weight(over_time, lr=0.25)
        scheduler = lr_scheduler.CyclicLR(optimizer, base_lr=0.25, max_lr=0.5, step_size_up=2)
        for _ in range(3):
            optimizer.step()
            scheduler.step()
        return method.strength_in_force

    assert climb(make(peak_lr=0.5)) == (0.5 * 2.0 if make is Independent else 0.5 * 0.75)
    with pytest.raises(RuntimeError, match=r"learning rate 0\.375 is above its assumed peak 0\.25"):
        climb(make())


@both
@pytest.mark.parametrize("order", ["load, attach", "attach, load"])
def test_a_resume_in_the_middle_of_a_schedule_is_exact(make, order):
    def step(model, optimizer, inputs, labels, count):
        for k in count:
            optimizer.param_groups[0]["lr"] = 0.1 * 0.5**k
            steps(model, optimizer, inputs, labels, 1)

    model, inputs, labels = problem()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    method = DecoupledDecay.for_model(model, 0.5, over_time=make())
    method.attach(optimizer)
    step(model, optimizer, inputs, labels, range(3))
    other = twin_of(model)
    resumed = torch.optim.Adam(other.parameters(), lr=7.0)
    new = DecoupledDecay.for_model(other, 0.5, over_time=make())
    actions = {
        "load": lambda: new.load_state_dict(through_a_file(method.state_dict())),
        "attach": lambda: new.attach(resumed),
    }
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for action in order.split(", "):
        actions[action]()
    for one, own in ((model, optimizer), (other, resumed)):
        step(one, own, inputs, labels, range(3, 6))
    assert same(model, other) and method.strength_in_force == new.strength_in_force
    assert new.state_dict() == method.state_dict()


@both
def test_a_copy_of_method_and_optimizer_keeps_the_peak(make):
    w, optimizer, method = one_weight(make())
    optimizer.param_groups[0]["lr"] = 0.125
    twins = copy.deepcopy((w, optimizer, method))
    twins[0].grad = torch.zeros_like(w)
    for own in (optimizer, twins[1]):
        own.step()
    factor = 0.25 if isinstance(method.over_time[0], Corrected) else 2.0
    assert w.item() == twins[0].item() == 1 - 0.125 * 0.5 * factor


@both
def test_a_learning_rate_in_a_tensor(make):
    w, optimizer, method = one_weight(make(), lr=torch.tensor(0.5))
    optimizer.param_groups[0]["lr"].mul_(0.5)
    optimizer.step()
    factor = 0.5 if isinstance(method.over_time[0], Corrected) else 2.0
    assert w.item() == 1 - 0.25 * 0.5 * factor


# -- the runs of wdlab.train -------------------------------------------------------------------------------------------

RUN = ("regularizer=decoupled", "model=mlp", "model.width=8", "model.norm=batch", "train.steps=60", "train.log_every=1")
SCHEDULES = {
    "cosine": (("lr_schedule=cosine", "lr_schedule.warmup_epochs=0.37"), lambda s: cosine(*s, 0.37)),
    "never at its top": (("lr_schedule=cosine", "lr_schedule.warmup_epochs=99"), lambda s: cosine(*s, 99)),
    "multistep": (("lr_schedule=multistep", "lr_schedule.milestones=[0,1]"), lambda s: multistep(*s, [0, 1])),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_has_the_exact_peak_of_its_schedule(name, tmp_path, command):
    overrides, factor = SCHEDULES[name]
    logged = {}
    for over_time in ("corrected", "independent"):
        more = (f"regularizer/over_time={over_time}", "logger=disabled", "runtime=cpu", "train.eval_every=60")
        done = command(*RUN, *overrides, *more, f"paths.runs={over_time}")
        assert done.returncode == 0, done.stderr
        (path,) = (tmp_path / over_time).glob("*/metrics.jsonl")
        logged[over_time] = [json.loads(line) for line in path.read_text().splitlines()]
    per_epoch = logged["corrected"][1]["step"] / logged["corrected"][1]["epoch"]
    lrs = [factor((step, 60, round(per_epoch))) for step in range(60)]
    peak = max(lrs)
    for ours, theirs, lr in zip(logged["corrected"][1:], logged["independent"][1:], lrs, strict=True):
        assert ours["lr"] == pytest.approx(0.1 * lr, rel=1e-12)
        assert ours["strength"] == pytest.approx(1e-2 * lr / peak, rel=1e-12)
        assert theirs["strength"] == pytest.approx(1e-2 / (0.1 * peak), rel=1e-12)


def test_a_clock_knows_the_largest_factor():
    assert Clock().peak_lr_factor == Clock(10, 2).peak_lr_factor == 1.0
    clock = Clock(9, 4, cosine)
    assert clock.peak_lr_factor == max(cosine(k, 9, 4) for k in range(9)) == 1.0
    assert Clock(3, 4, lambda step, *_: (0.5, 3.0, 0.25)[step]).peak_lr_factor == 3.0


# -- the scope ---------------------------------------------------------------------------------------------------------


def test_only_normalized_weights_are_corrected_and_it_is_said():
    model = norm_net()
    method = DecoupledDecay.for_model(model, 0.5, over_time=Corrected())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    summary, *lines = method.describe().splitlines()
    assert "over time Corrected(scope=normalized)" in summary
    assert [line.endswith("corrected") for line in lines] == [True, True, False, False]
    method.attach(optimizer)
    before = [w.detach().clone() for w in method.params]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()
    for w, old, rate in zip(method.params, before, [0.0625, 0.0625, 0.125, 0.125], strict=True):
        assert torch.equal(w, old * (1 - rate))
    assert method.strength_in_force == 0.25


def test_a_method_of_a_list_of_weights_is_told_which_are_normalized():
    model = norm_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with pytest.raises(ValueError, match="the normalized weights are not known; give them as weights"):
        DecoupledDecay(list(model.parameters()), 0.5, over_time=Corrected()).attach(optimizer)
    given = Corrected(weights=normalized_weights(model))
    DecoupledDecay(list(model.parameters()), 0.5, over_time=given).attach(optimizer)
    assert [given.acts_on(p) for p in model.parameters()] == [k in (0, 3) for k in range(11)]
    assert all(map(Corrected("all").acts_on, model.parameters()))


def test_what_cannot_be_corrected_is_refused(compose):
    model, *_ = problem()
    with pytest.raises(ValueError, match="no decayed layer of MLP is followed directly by a batch or instance norm"):
        DecoupledDecay.for_model(model, 0.5, over_time=Corrected())
    with pytest.raises(ConfigError, match=r"regularizer\.over_time=Corrected\(scope=normalized\): no decayed") as told:
        build_parts(compose("regularizer=decoupled", "regularizer/over_time=corrected"))
    assert str(told.value).endswith("give Corrected('all'), on the command line regularizer.over_time.scope=all")
    DecoupledDecay.for_model(model, 0.0, over_time=Corrected())  # as in a sweep over strengths
    with pytest.raises(ValueError, match="scope='some': must be one of normalized, all"):
        Corrected("some")
    with pytest.raises(ValueError, match="weights: must not be given with scope='all'"):
        Corrected("all", weights=[])
    with pytest.raises(ValueError, match="weights: got a tensor; give a list of tensors"):
        Corrected(weights=torch.ones(2))


@pytest.mark.parametrize(
    ("given", "count"),
    [(lambda: normalized_weights(norm_net()), 2), (list, 0), (lambda: normalized_weights(problem()[0]), 0)],
    ids=["of another model", "empty", "no norm"],
)
def test_weights_that_the_method_does_not_decay_are_refused(given, count):
    model = norm_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    wrong = DecoupledDecay(list(model.parameters()), 0.5, over_time=Corrected(weights=given()))
    with pytest.raises(ValueError, match=f"the method decays none of the {count} given weights"):
        wrong.attach(optimizer)
    assert not wrong.is_attached
    right = Corrected(weights=normalized_weights(model))
    DecoupledDecay(list(model.parameters()), 0.5, over_time=right).attach(optimizer)


def test_independent_decay_that_the_learning_rate_does_not_multiply_is_refused(compose):
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.5)
    told = "Independent: the decay of ConstrainedRegularization is not multiplied by the learning rate; leave it out"
    with pytest.raises(ValueError, match=told):
        ConstrainedRegularization([w], warm_start=1, over_time=Independent()).attach(optimizer)
    with pytest.raises(ConfigError, match=told):
        build_parts(compose("regularizer=cpr", "regularizer/over_time=independent"))
    ConstrainedRegularization([w], 0.0, over_time=Independent()).attach(optimizer)  # as in a sweep over strengths


def test_one_factor_may_serve_two_models():
    factor, models = Corrected(), [norm_net(), norm_net()]
    methods = [DecoupledDecay.for_model(model, 0.5, over_time=factor) for model in models]
    for model, method, lr in zip(models, methods, (0.5, 0.25), strict=True):
        method.attach(torch.optim.SGD(model.parameters(), lr=lr))
    assert [factor.acts_on(method.params[k]) for method in methods for k in (0, 2)] == [True, False] * 2
    assert [method.strength_in_force for method in methods] == [0.5, 0.5]
    assert factor.state_dict() == {"lrs": [0.25]}  # of the last optimizer


def test_the_metrics_use_the_strength_of_each_tensor():
    model = norm_net()
    method = L2.for_model(model, 0.5, over_time=Corrected())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    method.attach(optimizer)
    optimizer.param_groups[0]["lr"] = 0.125
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    norms = {id(p): p.grad.norm().double().reshape(1) for p in model.parameters()}
    penalty = [s * w.detach().double() for w, s in zip(method.params, [0.125, 0.125, 0.5, 0.5], strict=True)]
    comparison = GradientComparison(method, norms)
    optimizer.step()
    expected = math.sqrt(sum(r.square().sum().item() for r in penalty))
    assert comparison.values()["gradient/penalty_norm"].item() == pytest.approx(expected, rel=1e-6)


def test_factors_multiply_and_what_is_paired_is_said_too():
    _, optimizer, method = one_weight([Corrected("all"), Independent(), Early(steps=2)])
    assert factors_of(method, optimizer, [0.25, 0.5, 0.5]) == [1.0, 2.0, 0.0]
    model = nn.Sequential(
        *(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)),
    )
    lines = PathProx.for_model(model, 0.1, balance=False, over_time=Corrected()).describe().splitlines()[1:]
    assert [line.split("0.1")[1].strip() for line in lines] == ["path-norm", "path-norm", "corrected"]


@both
def test_no_objective_is_said_to_be_minimized(make):
    model, *_ = problem()
    assert L2.for_model(model, 0.1).has_objective
    assert not L2.for_model(model, 0.1, over_time=make()).has_objective


# -- the steady state of the paper -------------------------------------------------------------------------------------


@pytest.mark.parametrize("corrects", [False, True])
def test_the_ratio_of_gradient_and_weight_is_that_of_the_paper(corrects):
    """A scale-invariant weight under random gradients: ``|g| / |w|`` becomes ``sqrt(2 s / a)``.

    As the learning rate falls to a quarter, the ratio doubles under plain decay, and stays under corrected decay.
    """
    torch.manual_seed(0)
    w = torch.randn(400, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.SGD([w], lr=0.2)
    strength, found = 0.1, []
    DecoupledDecay([w], strength, over_time=Corrected("all") if corrects else None).attach(optimizer)
    for lr in (0.2, 0.05):
        optimizer.param_groups[0]["lr"] = lr
        ratios = []
        for _ in range(round(4 / (lr * strength * (lr / 0.2 if corrects else 1)))):  # 4 time scales of the decay
            noise = torch.randn_like(w) * 0.05
            direction = w.detach() / w.norm()
            w.grad = (noise - direction * (noise @ direction)) / w.norm().detach()
            ratios.append((w.grad.norm() / w.norm()).item())
            optimizer.step()
        found.append(sum(ratios[-50:]) / 50)
    expected = [math.sqrt(2 * strength / 0.2)] * 2 if corrects else [math.sqrt(2 * strength / a) for a in (0.2, 0.05)]
    assert found == pytest.approx(expected, rel=0.1)
