"""What holds for every regularizer, found through its YAML: a new method is tested by existing."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from wdlab import runs, train
from wdlab.models import MLP
from wdlab.regularizers import L2, Regularizer

NAMES = sorted(path.stem for path in (runs.CONFIGS / "regularizer").glob("*.yaml"))
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
}


def problem(seed: int = 0):
    torch.manual_seed(seed)
    model = MLP((1, 4, 4), classes=3, width=8, depth=4)
    return model, torch.randn(16, 1, 4, 4), torch.randint(3, (16,))


def regularizer(name: str, model: nn.Module, **changes):
    node = OmegaConf.to_container(OmegaConf.load(runs.CONFIGS / "regularizer" / f"{name}.yaml")) | changes
    method = train.make(node, model=model)
    method.set_steps_per_epoch(2)
    return method


def steps(model, optimizer, inputs, labels, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@pytest.fixture(params=OPTIMIZERS)
def make_optimizer(request):
    return OPTIMIZERS[request.param]


@pytest.mark.parametrize("name", NAMES)
def test_runs_on_a_tiny_problem(name, make_optimizer):
    model, inputs, labels = problem()
    before = [p.detach().clone() for p in model.parameters()]
    method = regularizer(name, model)
    optimizer = make_optimizer(model.parameters())
    with method.attach(optimizer):
        steps(model, optimizer, inputs, labels, 5)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert any((p != q).any() for p, q in zip(model.parameters(), before, strict=True))
    assert torch.isfinite(method.penalty()) and method.penalty() >= 0


@pytest.mark.parametrize("name", NAMES)
def test_strength_zero_is_bit_identical_to_the_optimizer_alone(name, make_optimizer):
    model, inputs, labels = problem()
    alone = copy.deepcopy(model)
    optimizer, optimizer_alone = make_optimizer(model.parameters()), make_optimizer(alone.parameters())
    regularizer(name, model, strength=0.0).attach(optimizer)
    steps(model, optimizer, inputs, labels, 5)
    steps(alone, optimizer_alone, inputs, labels, 5)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), alone.parameters(), strict=True))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "none"])
def test_a_strength_changes_the_weights_and_removing_the_handle_stops_that(name, make_optimizer):
    model, inputs, labels = problem()
    alone = copy.deepcopy(model)
    optimizer, optimizer_alone = make_optimizer(model.parameters()), make_optimizer(alone.parameters())
    handle = regularizer(name, model, strength=0.01).attach(optimizer)
    steps(model, optimizer, inputs, labels, 12)
    steps(alone, optimizer_alone, inputs, labels, 12)
    assert any((p != q).any() for p, q in zip(model.parameters(), alone.parameters(), strict=True))
    handle.remove()
    alone.load_state_dict(model.state_dict())
    optimizer_alone.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(model, optimizer, inputs, labels, 3)
    steps(alone, optimizer_alone, inputs, labels, 3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), alone.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip_mid_training_is_exact(name, make_optimizer):
    model, inputs, labels = problem()
    method, optimizer = regularizer(name, model, strength=0.01), make_optimizer(model.parameters())
    method.attach(optimizer)
    steps(model, optimizer, inputs, labels, 3)
    resumed, *_ = problem(seed=1)
    resumed.load_state_dict(model.state_dict())
    other, other_optimizer = regularizer(name, resumed, strength=0.5), make_optimizer(resumed.parameters())
    other.attach(other_optimizer)
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict(method.state_dict())
    steps(model, optimizer, inputs, labels, 3)
    steps(resumed, other_optimizer, inputs, labels, 3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_closure_sees_the_same_moments(name):
    model, inputs, labels = problem()
    twin = copy.deepcopy(model)
    optimizer, twin_optimizer = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin))
    regularizer(name, model, strength=0.01).attach(optimizer)
    regularizer(name, twin, strength=0.01).attach(twin_optimizer)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    for _ in range(3):
        assert optimizer.step(closure) is not None
    steps(twin, twin_optimizer, inputs, labels, 3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "none"])
@pytest.mark.parametrize("fused", [False, True])
def test_under_a_gradient_scaler_the_strength_is_the_same_and_skipped_steps_are_skipped(name, fused):
    model, inputs, labels = problem()
    twin = copy.deepcopy(model)
    optimizer, plain = (torch.optim.SGD(m.parameters(), lr=0.1, fused=fused) for m in (model, twin))
    regularizer(name, model, strength=0.01).attach(optimizer)
    regularizer(name, twin, strength=0.01).attach(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(inputs), labels)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    steps(twin, plain, inputs, labels, 3)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    scaler.scale(torch.ones(()))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_gradients_that_are_still_scaled_are_refused():
    model, inputs, labels = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    L2.for_model(model, strength=0.01).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(nn.functional.cross_entropy(model(inputs), labels)).backward()
    with pytest.raises(RuntimeError, match=r"call scaler\.unscale_"):
        scaler.step(optimizer)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf"), "much", True])
def test_a_bad_strength_is_refused(name, strength):
    model, *_ = problem()
    with pytest.raises(Exception, match="strength="):
        regularizer(name, model, strength=strength)


def test_attach_refuses_parameters_the_optimizer_does_not_hold():
    model, *_ = problem()
    optimizer = torch.optim.SGD([model.layers[1].weight], lr=0.1)
    with pytest.raises(ValueError, match="3 of 4 parameters are not in the optimizer"):
        L2.for_model(model, 1e-4).attach(optimizer)


def test_attach_twice_is_refused_and_allowed_again_after_removal():
    model, *_ = problem()
    optimizer, method = torch.optim.SGD(model.parameters(), lr=0.1), L2.for_model(model, 1e-4)
    handle = method.attach(optimizer)
    with pytest.raises(RuntimeError, match="already attached"):
        method.attach(optimizer)
    handle.remove()
    method.attach(optimizer)


class Diary(Regularizer):
    """Writes down its moments, and the gradient it sees."""

    def __init__(self, params, name, pages):
        super().__init__(params, 1.0)
        self.name, self.pages = name, pages

    def after_backward(self):
        self.pages.append((self.name, "after_backward", self.params[0].grad.item()))
        self.params[0].grad += 1

    def before_step(self):
        self.pages.append((self.name, "before_step", self.params[0].grad.item()))

    def after_step(self):
        self.pages.append((self.name, "after_step", self.params[0].item()))


@pytest.mark.parametrize("with_closure", [False, True])
def test_two_methods_go_through_the_moments_together(with_closure):
    parameter, pages = torch.zeros(1, requires_grad=True), []
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    handles = [Diary([parameter], name, pages).attach(optimizer) for name in "ab"]

    def closure():
        parameter.grad = torch.zeros(1)

    if with_closure:
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()
    assert pages == [
        *(("a", "after_backward", 0.0), ("b", "after_backward", 1.0)),
        *(("a", "before_step", 2.0), ("b", "before_step", 2.0)),
        *(("a", "after_step", -2.0), ("b", "after_step", -2.0)),
    ]
    handles[0].remove()
    pages.clear()
    optimizer.step()
    assert {name for name, *_ in pages} == {"b"}


def test_two_methods_add_up():
    parameter = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    for _ in range(2):
        L2([parameter], strength=0.25).attach(optimizer)
    parameter.grad = torch.zeros(2)
    optimizer.step()
    assert parameter.tolist() == [0.5, 0.5]


def test_a_copied_optimizer_carries_no_method_along():
    parameter = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    L2([parameter], strength=0.25).attach(optimizer)
    twin = copy.deepcopy(optimizer)
    twin.param_groups[0]["params"][0].grad = torch.zeros(2)
    twin.step()
    assert twin.param_groups[0]["params"][0].tolist() == [1.0, 1.0]


def test_scope_all_takes_biases_too_and_an_unknown_scope_is_refused():
    model, *_ = problem()
    assert len(L2.for_model(model, 1e-4, scope="all").params) == 2 * len(L2.for_model(model, 1e-4).params)
    with pytest.raises(ValueError, match="scope='biases': must be one of weights, all"):
        L2.for_model(model, 1e-4, scope="biases")


def test_groups_have_their_own_strength():
    a, b = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([a, b], lr=1.0)
    L2([{"params": [a], "strength": 0.5}, {"params": [b]}], strength=0.25).attach(optimizer)
    a.grad, b.grad = torch.zeros(3), torch.zeros(3)
    optimizer.step()
    assert a.tolist() == [0.5] * 3 and b.tolist() == [0.75] * 3


def test_the_base_class_refuses_nothing_and_repeated_parameters():
    parameter = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="empty"):
        Regularizer([])
    with pytest.raises(ValueError, match="more than once"):
        Regularizer([parameter, parameter])
