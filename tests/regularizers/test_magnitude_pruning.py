"""Magnitude pruning against a naive loop: schedule, counts, ties, what stays zero, resume, many runs at once."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from tests.problem import problem, same, steps, through_a_file, zero_gradients
from wdlab.build import build_parts
from wdlab.errors import ConfigError
from wdlab.homogeneous import weights
from wdlab.regularizers import DecoupledDecay, Early, MagnitudePruning
from wdlab.regularizers.magnitude_pruning import pruning_steps, with_smallest
from wdlab.schedules import Clock

LENGTH = 20  # updates of a run
SETTINGS = {
    "every other step": {"times": 6, "begin": 0.1, "end": 0.7},
    "linear": {"times": 6, "begin": 0.1, "end": 0.7, "ramp": "linear"},
    "all at once": {"times": 1, "begin": 0.0, "end": 0.5},
    "more often than there are steps": {"times": 40, "begin": 0.0, "end": 1.0},
}
OPTIMIZERS = {
    "adam": (lambda p: torch.optim.Adam(p, lr=0.01), lambda p, s: torch.optim.AdamW(p, lr=0.01, weight_decay=s)),
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), None),
}


def zeros_of(parameters) -> int:
    return sum(int((p == 0).sum()) for p in parameters)


def naive(model, inputs, labels, zeros, times, begin, end, ramp="cubic", strength=0.1):
    """AdamW by torch, and a list of the pruned places that grows by a plain sort at every pruning."""
    decayed, pruned = weights(model), set()
    others = [p for p in model.parameters() if not any(p is w for w in decayed)]
    groups = [{"params": decayed, "weight_decay": strength}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    for step in range(1, LENGTH + 1):
        steps(model, optimizer, inputs, labels, 1)
        flat = [w.detach().view(-1) for w in decayed]
        due = [k for k in range(1, times + 1) if max(1, round(LENGTH * (begin + (end - begin) * k / times))) == step]
        if due:
            left = 1 - due[-1] / times
            share = zeros * (1 - (left**3 if ramp == "cubic" else left))
            places = [(i, j) for i, w in enumerate(flat) for j in range(len(w)) if (i, j) not in pruned]
            places.sort(key=lambda place: abs(flat[place[0]][place[1]].item()))
            pruned |= set(places[: round(share * sum(map(len, flat))) - len(pruned)])
        for i, j in pruned:
            flat[i][j] = 0.0
    return model


@pytest.mark.parametrize("name", SETTINGS)
def test_it_is_adamw_with_the_smallest_weights_taken_out(name):
    model, inputs, labels = problem(dtype=torch.float64)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    MagnitudePruning(weights(model), 0.1, zeros=0.8, steps=LENGTH, **SETTINGS[name]).attach(optimizer)
    steps(model, optimizer, inputs, labels, LENGTH)
    naive(twin, inputs, labels, 0.8, **SETTINGS[name])
    assert same(model, twin)
    total = sum(w.numel() for w in weights(model))
    assert zeros_of(weights(model)) == round(0.8 * total)


@pytest.mark.parametrize("zeros", [0.5, 0.9, 0.95, 0.99])
def test_the_share_of_zeros_is_exact_to_one_weight_at_every_step(zeros):
    model, inputs, labels = problem()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    method = MagnitudePruning(weights(model), 0.1, zeros=zeros, times=6, begin=0.1, end=0.7, steps=LENGTH)
    method.attach(optimizer)
    total = sum(w.numel() for w in weights(model))
    for step in range(1, LENGTH + 1):
        steps(model, optimizer, inputs, labels, 1)
        done = max(0, min(6, (step - 2) // 2))  # after updates 4, 6, ... 14
        assert zeros_of(weights(model)) == round(zeros * (1 - (1 - done / 6) ** 3) * total)


def test_pruned_weights_stay_zero_and_the_optimizer_keeps_its_moments():
    model, inputs, labels = problem()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    MagnitudePruning(weights(model), 0.1, zeros=0.5, times=5, begin=0.0, end=0.5, steps=LENGTH).attach(optimizer)
    before = [torch.zeros_like(w, dtype=torch.bool) for w in weights(model)]
    for _ in range(LENGTH):
        steps(model, optimizer, inputs, labels, 1)
        now = [w == 0 for w in weights(model)]
        assert all((a <= b).all() for a, b in zip(before, now, strict=True))
        before = now
    moments = [optimizer.state[w]["exp_avg"][w == 0] for w in weights(model)]
    assert sum(int((moment != 0).sum()) for moment in moments) > 0


def test_the_threshold_is_one_for_all_tensors_and_takes_no_others():
    small, large = (torch.full((10,), size).requires_grad_() for size in (0.1, 1.0))
    other = torch.full((10,), 0.01).requires_grad_()
    optimizer = torch.optim.SGD([small, large, other], lr=0.1)
    groups = [{"params": [large], "strength": 0.5}, {"params": [small]}]
    MagnitudePruning(groups, 0.0, zeros=0.5, times=1, begin=0.0, end=1.0, steps=1).attach(optimizer)
    zero_gradients(optimizer)
    optimizer.step()
    assert small.tolist() == [0.0] * 10
    assert large.tolist() == pytest.approx([0.95] * 10) and other.tolist() == pytest.approx([0.01] * 10)


def test_of_equal_weights_the_first_are_pruned_and_a_live_zero_frees_no_pruned_weight():
    equal = [torch.full((4,), 0.5), torch.full((2, 3), -0.5)]
    none = [torch.zeros_like(w, dtype=torch.bool) for w in equal]
    assert [m.flatten().tolist() for m in with_smallest(none, equal, 0.6)] == [[True] * 4, [True] * 2 + [False] * 4]
    mask = torch.tensor([False, False, True, True])
    assert with_smallest([mask], [torch.zeros(4)], 0.5)[0].tolist() == mask.tolist()
    assert with_smallest([mask], [torch.zeros(4)], 0.75)[0].tolist() == [True, False, True, True]
    assert with_smallest([mask], [torch.zeros(4)], 0.25)[0].tolist() == mask.tolist()  # with fewer tensors than before


def test_each_run_of_a_stack_has_smallest_weights_of_its_own():
    torch.manual_seed(0)
    one, other = ([torch.randn(3, 4), torch.randn(1, 5)] for _ in range(2))
    other = [100 * w for w in other]
    stack = [torch.stack(pair) for pair in zip(one, other, strict=True)]
    together = with_smallest([torch.zeros_like(w, dtype=torch.bool) for w in stack], stack, 0.7, runs=2)
    for run, alone in enumerate((one, other)):
        expected = with_smallest([torch.zeros_like(w, dtype=torch.bool) for w in alone], alone, 0.7)
        assert all(torch.equal(m[run], e) for m, e in zip(together, expected, strict=True))
        assert sum(int(m[run].sum()) for m in together) == round(0.7 * 17)


def test_prunings_are_spread_from_begin_to_end():
    assert pruning_steps(100, 4, 0.1, 0.5) == (20, 30, 40, 50)
    assert pruning_steps(11200, 40, 0.02, 0.7)[-1] == 7840
    short = pruning_steps(5, 40, 0.0, 1.0)
    assert short[0] == 1 and short[-1] == 5 and list(short) == sorted(short)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("strength", [0.0, 0.1])
def test_zeros_0_is_decoupled_decay_and_with_strength_0_the_optimizer_alone(optimizer, strength):
    make = OPTIMIZERS[optimizer][0]
    model, inputs, labels = problem()
    twin = copy.deepcopy(model)
    ours, theirs = make(model.parameters()), make(twin.parameters())
    MagnitudePruning(weights(model), strength, zeros=0.0).attach(ours)  # needs no length of the run
    if strength:
        DecoupledDecay(weights(twin), strength).attach(theirs)
    steps(model, ours, inputs, labels, 5)
    steps(twin, theirs, inputs, labels, 5)
    assert same(model, twin)


def test_the_pruning_depends_on_no_strength_and_no_factor_over_time():
    pruned = []
    for strength, over_time in ((0.0, None), (0.1, Early(steps=0))):
        model, inputs, labels = problem()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        method = MagnitudePruning(weights(model), strength, zeros=0.8, steps=LENGTH, over_time=over_time)
        with pytest.warns(UserWarning, match="decays nothing") if over_time else contextlib.nullcontext():
            method.attach(optimizer)
        steps(model, optimizer, inputs, labels, LENGTH)
        pruned.append(model)
    assert same(*pruned)
    assert zeros_of(weights(pruned[0])) == round(0.8 * sum(w.numel() for w in weights(pruned[0])))


def test_it_resumes_exactly_in_the_middle_of_the_ramp():
    def prepared(seed):
        model, inputs, labels = problem(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        method = MagnitudePruning(weights(model), 0.1, zeros=0.8, times=6, begin=0.1, end=0.7)
        method.clock = Clock(LENGTH)
        method.attach(optimizer)
        return model, optimizer, method, inputs, labels

    model, optimizer, method, inputs, labels = prepared(0)
    steps(model, optimizer, inputs, labels, 8)  # after the third of six prunings
    live_zero = (weights(model)[0] != 0).nonzero()[0].tolist()
    weights(model)[0].data[tuple(live_zero)] = 0.0  # is zero by chance, and not pruned: the weights do not tell
    resumed, other, its_method, *_ = prepared(1)
    resumed.load_state_dict(model.state_dict())
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    its_method.load_state_dict(through_a_file(method.state_dict()))
    for m, o in ((model, optimizer), (resumed, other)):
        steps(m, o, inputs, labels, 1)
    assert same(model, resumed) and weights(model)[0][tuple(live_zero)] != 0
    for m, o in ((model, optimizer), (resumed, other)):
        steps(m, o, inputs, labels, LENGTH - 9)
    assert same(model, resumed)


BAD = {
    "zeros=1": "zeros=1: must be less than 1",
    "zeros=-0.1": "zeros=-0.1: must be a finite number >= 0",
    "zeros=much": "zeros='much': must be a number >= 0",
    "begin=0.7": "begin=0.7: must be less than end=0.7",
    "begin=-0.1": "begin=-0.1: must be a finite number >= 0",
    "end=1.5": "end=1.5: must be at most 1, a share of the run",
    "end=0": "end=0: must be a finite number > 0",
    "times=0": "times=0: must be a whole number >= 1",
    "times=2.5": "times=2.5: must be a whole number >= 1",
    "ramp=square": "ramp='square': must be one of cubic, linear",
}


@pytest.mark.parametrize("override", BAD)
def test_what_cannot_be_is_one_error_before_training(override, compose):
    with pytest.raises(ConfigError) as error:
        build_parts(compose("regularizer=magnitude_pruning", f"regularizer.{override}"))
    assert str(error.value) == f"regularizer.{BAD[override]}"


def test_the_length_of_the_run_has_to_be_known():
    w = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    with pytest.raises(ValueError, match="MagnitudePruning: needs the length of the run in updates; give it as steps"):
        MagnitudePruning([w], 0.1).attach(optimizer)
    with pytest.raises(ValueError, match="steps=0: must be a whole number >= 1"):
        MagnitudePruning([w], 0.1, steps=0)


def test_its_description_says_what_is_pruned():
    model = nn.Linear(3, 2)
    said = MagnitudePruning.for_model(model, 0.1, zeros=0.95, steps=9).describe().splitlines()
    assert said[0].endswith("multiplied by the learning rate, pruned to 95 % zeros between 2 and 70 % of the run")
    assert "pruned" not in MagnitudePruning.for_model(model, 0.1, zeros=0).describe() and len(said) == 2
