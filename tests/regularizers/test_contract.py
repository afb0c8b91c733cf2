"""What holds for every regularizer, found through its YAML: a new method is tested by existing.

Beside every YAML as it is stand variants: options that change the arithmetic, and strengths over time.
"""

import copy
import itertools

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from tests.problem import close, problem, same, steps, through_a_file
from wdlab.build import instantiate_node
from wdlab.homogeneous import weights
from wdlab.records.identity import CONFIGS
from wdlab.regularizers import L1, L2, DecoupledDecay, Regularizer
from wdlab.regularizers.routes import OF_ADAM
from wdlab.schedules import Clock


def over(name: str, **arguments) -> dict:
    return {"_target_": f"wdlab.regularizers.{name}", **arguments}


VARIANTS = {
    **{f"l2 {route}": ("l2", {"route": route}) for route in (*OF_ADAM, "decoupled")},
    "l1 separate": ("l1", {"route": "separate"}),
    "l1 decoupled": ("l1", {"route": "decoupled"}),
    "l1 early second": ("l1", {"route": "second", "over_time": over("Early", steps=2)}),
    **{f"pnorm {p}": ("pnorm", {"p": p}) for p in (0.5, 1, 1.3, 1.5, 2, 3.0)},
    "pnorm late": ("pnorm", {"late": True}),
    "pnorm compiled": ("pnorm", {"compiled": True}),
    "pnorm scheduled": ("pnorm", {"over_time": over("GradientScale")}),
    "pnorm coherent": ("pnorm", {"over_time": over("CoherenceGate", coherence="total_gradient", threshold=-0.5)}),
    "pnorm_prox 1.5": ("pnorm_prox", {"p": 1.5}),
    "pnorm ridge": ("pnorm", {"ridge": 0.1, "p": 1.3, "late": True}),
    "elastic_pnorm coherent": ("elastic_pnorm", {"over_time": over("CoherenceGate", threshold=-0.5)}),
    "huber early": ("huber", {"delta": 0.3, "over_time": over("Early", steps=2)}),
    "huber scheduled": ("huber", {"delta": 0.03, "over_time": over("GradientScale")}),
    "cpr inflection": ("cpr", {"kappa": "inflection", "every": 2}),
    "cpr coherent": ("cpr", {"over_time": over("CoherenceGate", threshold=-0.5)}),
    "pathprox with bias": ("pathprox", {"regularize_bias": True}),
    "pathprox unbalanced": ("pathprox", {"balance": False}),
    "pathprox compiled": ("pathprox", {"compiled": True}),
    "pathprox early": ("pathprox", {"over_time": over("Early", steps=2)}),
    "pathprox coherent": ("pathprox", {"over_time": over("CoherenceGate", coherence="norm_ratio", threshold=0.01)}),
    "delayed": ("delayed", {"over_time": over("Delayed", epochs=1)}),  # the default is longer than a run of these tests
    **{
        f"{name} cautious": (name.split()[0], {"cautious": True, **options})
        for name, options in {
            "scheduled": {},
            "pnorm": {},
            "pnorm 2": {"p": 2},
            "pnorm late": {"late": True},
            "pnorm compiled": {"compiled": True},
            "pnorm_prox": {},
            "magnitude_pruning": {"zeros": 0},
        }.items()
    },
    "pnorm cautious corrected": ("pnorm", {"cautious": True, "over_time": over("Corrected", scope="all")}),
    "l2 corrected": ("l2", {"over_time": over("Corrected", scope="all")}),
    "decoupled independent": ("decoupled", {"over_time": over("Independent")}),
    "pathprox independent": ("pathprox", {"over_time": over("Independent", peak_lr=0.2)}),
    "decoupled warm-up": ("decoupled", {"over_time": over("WarmUp", steps=3)}),
    "decoupled late": ("decoupled", {"over_time": over("Late", epochs=1)}),
    "l1 coherent": ("l1", {"over_time": over("CoherenceGate")}),
}
NAMES = sorted(path.stem for path in (CONFIGS / "regularizer").glob("*.yaml"))
CASES = list(dict.fromkeys([*NAMES, *VARIANTS]))
DOING = [case for case in CASES if case != "none"]
NOT_COMPILED = [case for case in DOING if "compiled" not in case]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True, fused=True),
}
TWO = ("sgd", "adam")  # where a maximum of second moments and a fused step make no difference
# what makes a method's steps those of a decay by its strength alone: pruning and a ridge do not depend on it
UNPRUNED = {
    "magnitude_pruning": {"zeros": 0.0},
    **{case: {"ridge": 0.0} for case in ("elastic_pnorm", "elastic_pnorm coherent", "pnorm ridge")},
}
LATE = {"cpr inflection"}  # decays nothing in so few steps
NEED_ADAM = {case for case in CASES if case.split()[-1] in OF_ADAM}


def on_optimizers(cases=CASES, optimizers=OPTIMIZERS):
    pairs = [(c, o) for c, o in itertools.product(cases, optimizers) if not (c in NEED_ADAM and o == "sgd")]
    return pytest.mark.parametrize(
        ("name", "make_optimizer"), [pytest.param(c, OPTIMIZERS[o], id=f"{c}-{o}") for c, o in pairs]
    )


def regularizer(case: str, model: nn.Module, **changes):
    name, options = VARIANTS.get(case, (case, {}))
    node = OmegaConf.to_container(OmegaConf.load(CONFIGS / "regularizer" / f"{name}.yaml")) | options | changes
    method = instantiate_node(node, model=model)
    method.clock = Clock(steps=10, steps_per_epoch=2)
    return method


@on_optimizers(CASES, TWO)
def test_runs_on_a_tiny_problem(name, make_optimizer):
    model, inputs, labels = problem()
    before = copy.deepcopy(model)
    method = regularizer(name, model)
    optimizer = make_optimizer(model.parameters())
    with method.attach(optimizer):
        steps(model, optimizer, inputs, labels, 5)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not same(model, before)
    assert torch.isfinite(method.penalty()) and method.penalty() >= 0
    assert 0 <= method.strength_in_force < float("inf")


@on_optimizers()
def test_strength_zero_is_bit_identical_to_the_optimizer_alone(name, make_optimizer):
    model, inputs, labels = problem()
    alone = copy.deepcopy(model)
    optimizer, optimizer_alone = make_optimizer(model.parameters()), make_optimizer(alone.parameters())
    regularizer(name, model, strength=0.0, **UNPRUNED.get(name, {})).attach(optimizer)
    steps(model, optimizer, inputs, labels, 5)
    steps(alone, optimizer_alone, inputs, labels, 5)
    assert same(model, alone)


@on_optimizers([case for case in DOING if case not in LATE], TWO)
def test_a_strength_changes_the_weights_and_removing_the_handle_stops_that(name, make_optimizer):
    model, inputs, labels = problem()
    alone = copy.deepcopy(model)
    optimizer, optimizer_alone = make_optimizer(model.parameters()), make_optimizer(alone.parameters())
    handle = regularizer(name, model, strength=0.01).attach(optimizer)
    steps(model, optimizer, inputs, labels, 12)
    steps(alone, optimizer_alone, inputs, labels, 12)
    assert not same(model, alone)
    handle.remove()
    alone.load_state_dict(model.state_dict())
    optimizer_alone.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(model, optimizer, inputs, labels, 3)
    steps(alone, optimizer_alone, inputs, labels, 3)
    assert same(model, alone)


@on_optimizers()
def test_state_round_trip_mid_training_is_exact(name, make_optimizer):
    model, inputs, labels = problem()
    method, optimizer = regularizer(name, model, strength=0.01), make_optimizer(model.parameters())
    method.attach(optimizer)
    steps(model, optimizer, inputs, labels, 3)
    resumed, *_ = problem(seed=1)
    resumed.load_state_dict(model.state_dict())
    other, other_optimizer = regularizer(name, resumed, strength=0.5), make_optimizer(resumed.parameters())
    other_optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    other.load_state_dict(through_a_file(method.state_dict()))
    other.load_state_dict(through_a_file(other.state_dict()))  # once more before a step
    other.attach(other_optimizer)
    steps(model, optimizer, inputs, labels, 12)
    steps(resumed, other_optimizer, inputs, labels, 12)
    assert same(model, resumed)
    assert method.strength_in_force == other.strength_in_force


@on_optimizers(DOING, ("sgd", "amsgrad"))
def test_a_parameter_without_a_gradient_is_left_alone(name, make_optimizer):
    model, inputs, labels = problem()
    optimizer = make_optimizer(model.parameters())
    regularizer(name, model, strength=0.01).attach(optimizer)
    steps(model, optimizer, inputs, labels, 2)
    missing = list(model.layers[5].parameters())
    before = [p.detach().clone() for p in missing]
    steps(model, optimizer, inputs, labels, 3, without_gradient=missing)
    assert all(torch.equal(p, q) for p, q in zip(missing, before, strict=True))
    steps(model, optimizer, inputs, labels, 3)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@on_optimizers(DOING, ("sgd", "amsgrad"))
def test_a_step_without_any_gradient_does_nothing(name, make_optimizer):
    model, *_ = problem()
    before = copy.deepcopy(model)
    optimizer = make_optimizer(model.parameters())
    regularizer(name, model, strength=0.01).attach(optimizer)
    optimizer.step()
    assert same(model, before)


@on_optimizers(NOT_COMPILED, ("sgd", "amsgrad"))
def test_a_parameter_added_later_is_decayed_too(name, make_optimizer):
    def train_with_an_extra(added: bool) -> torch.Tensor:
        model, inputs, labels = problem()
        extra = torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()
        optimizer = make_optimizer(model.parameters())
        method = regularizer(name, model, strength=0.01)
        method.attach(optimizer)
        steps(model, optimizer, inputs, labels, 2)
        with pytest.raises(ValueError, match="1 of 1 parameters are not in the optimizer"):
            method.add_param_group({"params": [extra]})
        optimizer.add_param_group({"params": [extra]})
        if added:
            method.add_param_group({"params": [extra], "strength": 0.02})
        for _ in range(12):
            optimizer.zero_grad()
            (nn.functional.cross_entropy(model(inputs), labels) + (extra * torch.randn(2, 3)).sum()).backward()
            optimizer.step()
        return extra.detach()

    if name not in ("early", "pathprox early", "l1 early second", "huber early", *LATE):  # over before it comes
        assert not torch.equal(train_with_an_extra(True), train_with_an_extra(False))


@on_optimizers(NOT_COMPILED, TWO)
def test_groups_have_strengths_of_their_own(name, make_optimizer):
    """A group of strength 0 is left to the optimizer alone."""
    model, *_ = problem()
    parameters = weights(model)[:2] if "pathprox" not in name else []
    if not parameters:
        return  # PathProx takes pairs; its groups are those added later, see above
    twins = [p.detach().clone().requires_grad_() for p in parameters]
    method = regularizer(name, model, strength=0.05, **UNPRUNED.get(name, {}))
    options = {key: method.groups[0][key] for key in method.groups[0] if key == "p"}
    method.groups.clear()
    method.add_param_group({"params": [parameters[0]], "strength": 0.05, **options})
    method.add_param_group({"params": [parameters[1]], "strength": 0.0, **options})
    optimizer, alone = make_optimizer(parameters), make_optimizer(twins)
    method.attach(optimizer)
    for _ in range(12):
        for p in (*parameters, *twins):
            p.grad = torch.full_like(p, 0.01)
        optimizer.step()
        alone.step()
    assert torch.equal(parameters[1], twins[1])
    assert name in LATE or not torch.equal(parameters[0], twins[0])


@on_optimizers(NOT_COMPILED, TWO)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrower_weights_follow_float64(name, make_optimizer, dtype):
    exact, inputs, labels = problem(dtype=torch.float64)
    with torch.no_grad():
        for p in exact.parameters():
            p.copy_(p.to(dtype))
    narrow = copy.deepcopy(exact).to(dtype)
    for model, x in ((exact, inputs), (narrow, inputs.to(dtype))):
        optimizer = make_optimizer(model.parameters())
        regularizer(name, model, strength=0.01).attach(optimizer)
        steps(model, optimizer, x, labels, 3)
    assert all(p.dtype == dtype and torch.isfinite(p).all() for p in narrow.parameters())
    if name == "magnitude_pruning" and dtype == torch.bfloat16:
        return  # rounding decides which of nearly equal weights are pruned
    if name not in NEED_ADAM:  # those divide by a second moment that may be next to nothing
        assert close(narrow, exact, rtol=0, atol=0.03 if dtype == torch.bfloat16 else 2e-4)


@on_optimizers(NOT_COMPILED, TWO)
def test_a_step_asks_no_value_of_a_device(name, make_optimizer):
    """Tensors on torch's ``meta`` device have no values: any attempt to read one, as a synchronization does, raises."""
    model, *_ = problem()
    model.to("meta")
    optimizer = make_optimizer(model.parameters())
    regularizer(name, model, strength=0.01).attach(optimizer)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        optimizer.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@on_optimizers(DOING, TWO)
def test_a_step_makes_no_synchronization_on_cuda(name, make_optimizer):
    model, inputs, labels = problem()
    model.to("cuda")
    optimizer = make_optimizer(model.parameters())
    regularizer(name, model, strength=0.01).attach(optimizer)
    steps(model, optimizer, inputs.cuda(), labels.cuda(), 3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_optimizers(DOING, TWO)
def test_two_methods_on_one_optimizer_act_in_any_order(name, make_optimizer):
    outcomes = []
    for order in (1, -1):
        model, inputs, labels = problem()
        optimizer = make_optimizer(model.parameters())
        own = {id(p) for p in weights(model)}
        methods = [
            regularizer(name, model, strength=0.01, scope="weights"),
            L1([p for p in model.parameters() if id(p) not in own], strength=0.01),
        ]
        for method in methods[::order]:
            method.attach(optimizer)
        steps(model, optimizer, inputs, labels, 5)
        outcomes.append(model)
    assert same(*outcomes)


@on_optimizers(["none", *NOT_COMPILED], TWO)
def test_a_closure_sees_the_same_moments(name, make_optimizer):
    model, inputs, labels = problem()
    twin = copy.deepcopy(model)
    optimizer, twin_optimizer = (make_optimizer(m.parameters()) for m in (model, twin))
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
    assert same(model, twin)


@pytest.mark.parametrize("name", [n for n in DOING if n not in NEED_ADAM])
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
    assert close(model, twin, atol=1e-6)
    before = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    scaler.scale(torch.ones(()))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert same(model, before)


def test_sparse_gradients_and_complex_parameters_are_refused():
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    L2(table.parameters(), 0.1).attach(optimizer)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="L2 does not support sparse gradients"):
        optimizer.step()
    with pytest.raises(ValueError, match="L2 does not decay complex parameters"):
        L2([torch.zeros(2, dtype=torch.complex64, requires_grad=True)], 0.1)


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


class CallsItsBase(torch.optim.Adam):
    """As users write it; torch runs the hooks of both classes."""

    def step(self, closure=None):
        return super().step(closure)


def test_a_step_that_calls_its_base_class_is_one_step():
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # from now on torch's own step has hooks
    parameter = torch.ones(2, requires_grad=True)
    optimizer = CallsItsBase([parameter], lr=0.1)
    method = DecoupledDecay([parameter], strength=1.0)
    method.attach(optimizer)
    for step in range(1, 4):
        parameter.grad = torch.zeros(2)
        if step == 2:  # a step that fails in between must not confuse the next one
            parameter.grad = torch.zeros(2, dtype=torch.float32).to_sparse()
            with pytest.raises(RuntimeError, match="sparse"):
                optimizer.step()
            parameter.grad = torch.zeros(2)
        optimizer.step()
        assert parameter.tolist() == pytest.approx([0.9**step] * 2) and method.updates == step


def test_an_optimizer_that_evaluates_its_closure_several_times_is_refused():
    parameter = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameter], lr=0.1)
    L2([parameter], strength=1.0).attach(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="LBFGS evaluates its closure several times in a step"):
        optimizer.step(closure)


@pytest.mark.parametrize("make", [lambda p, **k: torch.optim.SGD(p, lr=0.1, **k), torch.optim.Adam])
@pytest.mark.parametrize("decay", [0.3])
def test_an_optimizer_that_maximizes_still_decays(make, decay):
    ours, theirs = (torch.linspace(-1, 1, 6).requires_grad_() for _ in range(2))
    optimizer = make([ours], maximize=True)
    L2([ours], decay).attach(optimizer)
    reference = make([theirs], maximize=True, weight_decay=decay)
    for _ in range(4):
        for p, o in ((ours, optimizer), (theirs, reference)):
            p.grad = torch.full((6,), 0.01)
            o.step()
    assert torch.allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("name", [case for case in NOT_COMPILED if case not in NEED_ADAM])
def test_a_learning_rate_of_zero_changes_nothing(name):
    """Also one that is a tensor, and as a warm-up or a cosine has it."""
    for lr in (0.0, torch.tensor([0.0])):
        model, inputs, labels = problem()
        before = copy.deepcopy(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        regularizer(name, model, strength=0.1, **UNPRUNED.get(name, {})).attach(optimizer)
        optimizer.param_groups[0]["lr"] = lr
        steps(model, optimizer, inputs, labels, 3)
        assert same(model, before)


def test_params_are_taken_as_torch_takes_them():
    model, *_ = problem()
    assert len(L2(model.named_parameters(), 0.1).params) == len(list(model.parameters()))
    assert len(L2({"params": model.parameters()}, 0.1).params) == len(list(model.parameters()))
    assert len(L2(model.layers[1].weight, 0.1).params) == 1
    with pytest.raises(ValueError, match="params: got an empty list"):
        L2([{"params": []}], 0.1)


@pytest.mark.parametrize("name", ["l2", "pnorm", "pathprox", "scheduled"])
def test_torch_compile_of_a_step_with_a_method_attached(name):
    model, inputs, labels = problem(dtype=torch.float64)
    twin = copy.deepcopy(model)
    ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin))
    regularizer(name, model, strength=0.01).attach(ours)
    regularizer(name, twin, strength=0.01).attach(theirs)
    compiled = torch.compile(ours.step, backend="eager")
    for _ in range(3):
        ours.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        compiled()
    steps(twin, theirs, inputs, labels, 3)
    assert close(model, twin, rtol=0, atol=1e-6)
