"""Everything on the pretend GPU: the CPU's numbers, no tensor on the wrong device, no wait but where one is meant.

What the pretend device proves, and what it cannot, is said in ``pretend_device``.
"""

import copy
import itertools
import json
import math

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests import pretend_device
from tests.pretend_device import NAME, PretendTensor, waits
from tests.problem import problem
from wdlab import evaluate, loop
from wdlab.build import build_parts, instantiate_node
from wdlab.data import load as load_data
from wdlab.engine import device
from wdlab.engine.experiment import Experiment
from wdlab.engine.one_run import OneRun
from wdlab.footprint import footprint
from wdlab.metrics import sharpness
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import CONFIGS, compose_config, run_name
from wdlab.records.recorder import Recorder
from wdlab.records.wandb_mirror import Mirror
from wdlab.regularizers import L2
from wdlab.regularizers.routes import OF_ADAM
from wdlab.schedules import Clock
from wdlab.stacked.program import Stack, StackedRun

pytestmark = pytest.mark.skipif(pretend_device.MISSING is not None, reason=str(pretend_device.MISSING))

CPU = torch.device("cpu")
PRETEND = torch.device(NAME, 0) if pretend_device.MISSING is None else CPU


@pytest.fixture(autouse=True, scope="module")
def _the_device_is_there():
    pretend_device.module.available = True
    yield
    pretend_device.module.available = False


@pytest.fixture(autouse=True)
def _few_products_with_the_hessian(monkeypatch):
    monkeypatch.setattr(sharpness, "EIGENVALUE_PRODUCTS", 3)
    monkeypatch.setattr(sharpness, "TRACE_PROBES", (2, 3))


def here(*values: float, **options) -> torch.Tensor:
    return torch.tensor(values, **options).to(PRETEND)


# -- the device itself: what torch says of CUDA, by its source (TensorCompare.cpp, ForeachBinaryOpScalarTensor.cu, ...)

ONE = torch.tensor(1.0)
WAITS = {  # a line of code, and how often the host waits in it on a GPU
    "t.sum().item()": 1,
    "bool(t.sum() > 0)": 1,
    "float(t[0])": 1,
    "int(t[0])": 1,
    "t.tolist()": 1,
    "t.cpu()": 1,
    "t.to('cpu', torch.float64)": 1,
    "t.to('cpu', non_blocking=True)": 0,
    "t.to(torch.float64)": 0,
    "t.to(t.device)": 0,
    "t.nonzero()": 1,
    "t[t > 0]": 1,
    "torch.masked_select(t, t > 0)": 1,
    "t.clone().index_put_((t > 0,), t)": 1,
    "t.clone().__setitem__(t > 0, 0.0)": 0,
    "t.masked_fill(t > 0, 0.0)": 0,
    "t.masked_fill(t > 0, t[0])": 1,
    "torch.equal(t, t)": 1,
    "torch.allclose(t, t)": 1,
    "t.unique()": 1,
    "t.repeat_interleave(t.long())": 1,
    "t.repeat_interleave(t.long(), output_size=6)": 0,
    "torch.linalg.eigvalsh(t.diag())": 1,
    "t.add(t, alpha=t[0])": 1,
    "torch._foreach_add([t], t[0])": 1,
    "torch._foreach_add([t], t[0], alpha=1.0)": 0,
    "torch._foreach_mul([t], t[0])": 0,
    "torch.tensor(1.0, device=t.device)": 1,
    "torch.full((2,), 1.0, device=t.device)": 0,
    "torch.arange(3, device=t.device)": 0,
    "torch.randn(3, device=t.device)": 0,
    "torch.ones(3).to(t.device)": 1,
    "torch.ones(3).to(t.device, non_blocking=True)": 0,
    "t.clone().copy_(torch.ones(3))": 1,
    "torch.where(t > 0, t, 0.0)": 0,
    "torch.where(t > 0, ONE, t)": 1,
    "t[torch.tensor([0, 2])]": 1,
    "t[0:2]": 0,
    "t.index_select(0, t.long() - 1)": 0,
    "t * ONE": 0,
    "torch.add(ONE, t)": 0,
    "torch.addcmul(t, t, ONE)": 0,
    "torch._foreach_mul([t], ONE)": 0,
    "nn.utils.clip_grad_norm_([p], 1.0)": 0,
}
REFUSED = (
    *("t + torch.ones(3)", "t.add_(torch.ones(3))", "ONE.clone().add_(t[0])", "torch.dot(t, torch.ones(3))"),
    *("torch.stack([t[0], ONE])", "torch.cat([t, torch.ones(1)])", "torch.where(t > 0, torch.ones(3), t)"),
    *("torch._foreach_add([t], ONE, alpha=1.0)", "torch._foreach_add([t], [torch.ones(3)])"),
    *("torch.ones(3)[t.long() - 1]", "t.clone().index_put_((t > 0,), torch.ones(3))", "nn.Linear(3, 2)(t)"),
    *("nn.functional.embedding(torch.tensor([0]), t[:, None])", "torch.ones(3).add_(t)"),
    "torch.randn(3, device=t.device, generator=torch.Generator())",
)


@pytest.mark.parametrize("code", WAITS)
def test_the_host_waits_where_it_waits_for_a_gpu(code):
    t, p = here(1.0, 2.0, 3.0), nn.Parameter(here(1.0))
    p.grad = here(4.0)
    with waits() as found:
        eval(code, globals(), {"t": t, "p": p})
    assert len(found) == WAITS[code], found


@pytest.mark.parametrize("code", REFUSED)
def test_what_a_gpu_refuses_is_refused(code):
    with pytest.raises((RuntimeError, TypeError), match=r"device|cpu"):
        eval(code, globals(), {"t": here(1.0, 2.0, 3.0)})


ELEMENTWISE = (
    *("torch.add(t, s)", "torch.add(s, t)", "torch.addcmul(t, t, s)", "t.clamp(s)"),
    *("torch.addcmul(s, t, s)", "torch.hypot(t, s)", "torch.atan2(s, t)", "t.pow(s)", "torch.maximum(t, s)", "t >= s"),
)


@pytest.mark.parametrize("code", ELEMENTWISE)
def test_tensors_on_the_cpu_are_refused_where_torch_refuses_them_beside_its_meta_device(code):
    for s in (ONE, torch.ones(3)):
        refused = []
        for t in (torch.ones(3, device="meta"), here(1.0, 2.0, 3.0)):
            try:
                eval(code, globals(), {"t": t, "s": s})
            except RuntimeError as error:
                refused.append("device" in str(error))
            else:
                refused.append(False)
        assert refused[0] == refused[1], (s, refused)


def test_a_tensor_there_is_on_no_other_device():
    t = here(1.0, 2.0)
    assert t.device == PRETEND and not t.is_cpu and not t.is_cuda and type(t[:1].square()) is PretendTensor
    view = t.view(2, 1)
    view.mul_(2)
    assert t.tolist() == [2.0, 4.0]
    t.requires_grad_()
    t.square().sum().backward()
    assert t.grad.device == PRETEND and t.grad.tolist() == [4.0, 8.0]


def test_its_random_numbers_are_its_own():
    torch.manual_seed(0)
    first, of_cpu = torch.randn(3, device=PRETEND), torch.randn(3)
    torch.manual_seed(0)
    assert torch.equal(torch.randn(3), of_cpu)
    assert first.tolist() == torch.randn(3, device=PRETEND).tolist() != torch.randn(3, device=PRETEND).tolist()


def test_a_module_moves_there_and_back_under_its_optimizer():
    model, inputs, _ = problem()
    expected, weight = model(inputs).detach(), model.layers[1].weight
    model.to(PRETEND)
    assert model.layers[1].weight is weight and weight.device == PRETEND and isinstance(weight, nn.Parameter)
    assert torch.equal(model(inputs.to(PRETEND)).cpu(), expected)
    assert torch.equal(copy.deepcopy(model)(inputs.to(PRETEND)).cpu(), expected)
    assert torch.equal(model.cpu()(inputs), expected)


# -- steps: every method with every optimizer, on both devices


def from_yaml(group: str) -> dict[str, dict]:
    return {p.stem: OmegaConf.to_container(OmegaConf.load(p)) for p in sorted((CONFIGS / group).glob("*.yaml"))}


METHODS, OPTIMIZERS = from_yaml("regularizer"), from_yaml("optimizer")
OVER_TIME = from_yaml("regularizer/over_time")
SET = {"epochs": 1, "scope": "all"}  # in place of the values in the files: runs are short, and have no batch norm
CASES = {
    **METHODS,
    **{
        f"{name} {route}": METHODS[name] | {"route": route}
        for name in ("l2", "l1")
        for route in (*OF_ADAM, "decoupled")
    },
    **{f"coherent by {c}": METHODS["coherent"] | {"coherence": c} for c in ("total_gradient", "norm_ratio")},
    **{
        f"{name} {kind}": METHODS[name] | {"over_time": node | {key: SET[key] for key in SET if key in node}}
        for name, (kind, node) in itertools.product(("pnorm", "pathprox"), OVER_TIME.items())
    },
    **{f"pnorm {p}": METHODS["pnorm"] | {"p": p} for p in (0.5, 1, 1.5, 2, 3)},
    "pnorm late": METHODS["pnorm"] | {"late": True},
    "cpr inflection": METHODS["cpr"] | {"kappa": "inflection", "every": 2},
    "pnorm_prox 1.5": METHODS["pnorm_prox"] | {"p": 1.5},
    "l1 separate by total_gradient": METHODS["l1"]
    | {"route": "separate", "over_time": OVER_TIME["coherent"] | {"coherence": "total_gradient"}},
    "pathprox unbalanced by norm_ratio": METHODS["pathprox"]
    | {"balance": False, "over_time": OVER_TIME["coherent"] | {"coherence": "norm_ratio"}},
    "pathprox with biases": METHODS["pathprox"] | {"regularize_bias": True},
}
HOW = {
    "foreach": lambda where: {"foreach": True},
    "fused": lambda where: {"fused": True},
    "amsgrad": lambda where: {"foreach": True, "amsgrad": True},
    "lr on the CPU": lambda where: {"lr": torch.tensor([0.01])},
    "lr on the device": lambda where: {"lr": torch.tensor(0.01).to(where), "fused": True},
}


def steps_on(where: torch.device, case: str, optimizer: str, how: str, count: int = 3):
    """Model, optimizer and method after some steps of a small MLP, and the waits of the host in them."""
    model, inputs, labels = problem()
    opt = instantiate_node(OPTIMIZERS[optimizer] | HOW[how](where), params=list(model.parameters()))
    method = instantiate_node(CASES[case] | ({} if case == "none" else {"strength": 0.02}), model=model)
    method.clock = Clock(steps=10, steps_per_epoch=2)
    model.to(where)
    inputs, labels = inputs.to(where), labels.to(where)
    with method.attach(opt), waits() as found:
        for _ in range(count):
            opt.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            opt.step()
    return (model.state_dict(), opt.state_dict(), method.state_dict()), found


def assert_equal(there, on_cpu, tolerance: float = 0.0, at: str = ""):
    """Nested states or rows: those of the device are those of the CPU, up to ``tolerance`` of the larger one."""
    if isinstance(on_cpu, dict):
        assert there.keys() == on_cpu.keys(), at
        for key in on_cpu:
            assert_equal(there[key], on_cpu[key], tolerance, f"{at}/{key}")
    elif isinstance(on_cpu, list | tuple):
        assert len(there) == len(on_cpu), at
        for k, (a, b) in enumerate(zip(there, on_cpu, strict=True)):
            assert_equal(a, b, tolerance, f"{at}/{k}")
    elif isinstance(there, torch.Tensor) or isinstance(on_cpu, float):  # a number on the CPU may be a tensor there
        dtype = there.dtype if isinstance(there, torch.Tensor) and isinstance(on_cpu, float) else None
        ours, theirs = (torch.as_tensor(t, dtype=dtype).detach().cpu().double() for t in (there, on_cpu))
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, tolerance, tolerance / 100, True), at
    else:
        assert there == on_cpu, at


def tolerance_of(case: str, optimizer: str, how: str = "foreach") -> float:
    """What is a number on the CPU and a float32 tensor on a device, or the other way, is rounded differently.

    That is the scale of Adam's gradients, and a learning rate that is a tensor on the CPU. And p-norm decay multiplies
    and adds in one rounding on the CPU, in two elsewhere.
    """
    scaled = optimizer == "adams" or "scheduled" in case or "gradient_scale" in case
    rounded = optimizer == "padam" or case.split()[0] in ("pnorm", "elastic_pnorm") or how == "lr on the CPU"
    return 1e-5 if rounded or (scaled and optimizer not in ("sgd", "sgds")) else 0.0


@pytest.mark.parametrize("case", CASES)
def test_a_step_computes_what_the_cpu_does_and_waits_for_nothing(case):
    for optimizer, how in itertools.product(OPTIMIZERS, HOW):
        if "sgd" in optimizer and (how == "amsgrad" or CASES[case].get("route") in OF_ADAM):
            continue
        if how != "foreach" and (case not in METHODS or optimizer not in ("sgd", "adam", "adams")):
            continue
        (there, found), (on_cpu, _) = (steps_on(where, case, optimizer, how) for where in (PRETEND, CPU))
        assert not found, (optimizer, how)
        assert_equal(there, on_cpu, tolerance_of(case, optimizer, how), f"{optimizer} {how}")


# -- runs, by the real loop with all that it measures and saves

CIFAR10 = "dataset=cifar10 dataset.val_size=10 train.batch_size=12 "
TEXT = "dataset=tinyshakespeare dataset.classes=8 dataset.shape=[16] dataset.val_size=100 train.batch_size=12 "
RUNS = {
    "mlp": "model=mlp optimizer=adam regularizer=pathprox train.clip_norm=0.5",
    "mlp, its sharpness": "model=mlp optimizer=sgds regularizer=scheduled "
    "train.sharpness_every=4 train.sharpness_examples=50",
    "mlp_factorized": "model=mlp_factorized optimizer=adams regularizer=pathprox regularizer.balance=false "
    "regularizer/over_time=coherent regularizer.over_time.coherence=norm_ratio",
    "resnet8, padded": CIFAR10 + "model=resnet8 optimizer=sgd optimizer.momentum=0.9 regularizer=l2 "
    "train.average_decay=0.9 dataset.augment.padding=reflect dataset.augment.rotation=10 dataset.augment.cutout=8",
    "resnet8, gated": CIFAR10 + "model=resnet8 model.width=4 runtime.channels_last=never optimizer=adam "
    "regularizer=l1 regularizer.route=separate regularizer/over_time=coherent train.label_smoothing=0.1",
    "vgg11": CIFAR10 + "model=vgg11 model.width=1 optimizer=sgd regularizer=coherent dataset.augment=null",
    "vgg11_bn": CIFAR10 + "model=vgg11_bn model.width=1 optimizer=padam regularizer=pnorm_prox lr_schedule=cosine "
    "train.average_decay=0.9 train.label_smoothing=0.1",
    "gpt": TEXT + "model=gpt model.depth=2 optimizer=adamw regularizer=pnorm "
    "regularizer/over_time=warmup regularizer.over_time.epochs=1 train.clip_norm=1.0",
}
STEPS = 6
LENGTHS = (f"train.steps={STEPS}", "train.log_every=2", "train.eval_every=4")


def machine_of(config, where: torch.device) -> device.Machine:
    channels_last = config["runtime"]["channels_last"] == "auto"
    return device.Machine(where, "fp32", where.type, "torch default", channels_last)


def experiment(config, where: torch.device) -> Experiment:
    """As ``train.experiment`` makes it, on a device that no ``runtime.device`` chooses."""
    model, optimizer, regularizer, lr_factor = build_parts(config)
    machine = machine_of(config, where)
    machine.place(model)
    loaded = load_data(config["dataset"], config["paths"]["data"], where)
    return Experiment(model, loaded, optimizer, regularizer, lr_factor, machine, config["seed"])


class Trained:
    """A run on a device, or what is left of it: it resumes from the checkpoint that its directory has.

    Attributes:
        rows, state: of its log lines and of its last checkpoint.
        waits: by step, what the host waited for in it; those of the checkpoint at the end are not among them.
    """

    def __init__(self, config, where, folder, stop_after=None, change=lambda experiment: None):
        self.run = RunDirectory(folder, run_name(config))
        self.run.create()
        self.run.write_config(config)
        start = checkpoint.load(self.run)
        first = start["step"] if start else 0
        trained = experiment(config, where)
        change(trained)
        self.waits, marks = {}, []
        with waits() as found:

            class Marking(Recorder):
                def log(self, row):
                    marks.append(len(found))
                    super().log(row)

            def at_the_end_of_a_step() -> bool:
                step = first + len(self.waits) + 1
                self.waits[step] = found[marks[0] if marks and not self.waits else self._seen :]
                self._seen = len(found)
                return step == stop_after

            self._seen = 0
            recorder = Marking(self.run.metrics, start["records_bytes"] if start else 0, Mirror())
            program = OneRun(trained, config["train"], self.run, recorder, start)
            ends = loop.fit(program, config["train"], math.inf, at_the_end_of_a_step)
        recorder.close()
        assert ends == ("done" if stop_after is None else "interrupted")
        self.rows = [json.loads(line) for line in self.run.metrics.read_text().splitlines()]
        self.state = checkpoint.load(self.run)


@pytest.fixture(scope="module")
def composed(tmp_path_factory, tiny_data):
    """Compose a short run on one of the data sets that are small."""

    def _composed(*overrides: str):
        fixed = ("logger=disabled", "runtime=cpu", "model.width=8", "+optimizer.foreach=true", *LENGTHS)
        return compose_config([*fixed, f"paths.data={tiny_data}", *overrides])

    return _composed


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same_and_waits_once_on_a_log_line_and_nowhere_else(name, composed, tmp_path):
    config = composed(*RUNS[name].split())
    with sdpa_kernel(SDPBackend.MATH):  # the CPU has a faster attention, which rounds differently
        there, on_cpu = (Trained(config, where, tmp_path / where.type) for where in (PRETEND, CPU))
    tolerance = tolerance_of(config["regularizer"]["name"], config["optimizer"]["name"])
    assert len(there.rows) == 1 + STEPS // 2
    assert_equal(there.rows, on_cpu.rows, tolerance)
    parts = ("model", "optimizer", "regularizer", *(("average",) if config["train"]["average_decay"] else ()))
    assert_equal(*({part: of.state[part] for part in parts} for of in (there, on_cpu)), tolerance)
    for step, found in there.waits.items():
        if step % 2:
            assert not found, step
        elif not (config["train"]["sharpness_every"] and step >= 4):
            assert len(found) == 1 and "wdlab/metrics/measure.py" in found[0], (step, found)


@pytest.mark.parametrize(
    "choice",
    [
        TEXT + "model=gpt model.depth=1 model.dropout=0.2 optimizer=adams regularizer=none",
        "model=mlp optimizer=adam regularizer=coherent regularizer.coherence=running_mean train.average_decay=0.9",
        "model=mlp optimizer=padam regularizer=l2 regularizer.route=second regularizer/over_time=gradient_scale",
    ],
)
def test_a_run_that_was_stopped_ends_with_the_same_bits(choice, composed, tmp_path):
    config = composed(*choice.split())
    whole = Trained(config, PRETEND, tmp_path / "whole")
    Trained(config, PRETEND, tmp_path / "parts", stop_after=3)
    torch.manual_seed(1)  # as another process would begin: with other random numbers, here and there
    resumed = Trained(config, PRETEND, tmp_path / "parts")
    assert resumed.rows == whole.rows
    assert_equal(resumed.state, whole.state)
    assert f"rng_{NAME}" in whole.state and not torch.equal(whole.state[f"rng_{NAME}"], whole.state["rng"])


@pytest.mark.parametrize(
    ("choice", "of_average"),
    [
        ("model=mlp regularizer=pathprox regularizer.strength=5 train.sharpness_examples=40", False),
        (CIFAR10 + "model=resnet8 train.average_decay=0.5 regularizer=none train.sharpness_examples=12", True),
    ],
)
def test_a_finished_run_is_evaluated_and_pruned(choice, of_average, composed, tmp_path, monkeypatch):
    config = composed(*choice.split())
    run = Trained(config, PRETEND, tmp_path).run
    found = []
    for where in (PRETEND, CPU):
        monkeypatch.setattr(device, "set_up", lambda *_, where=where: machine_of(config, where))
        data = [f"paths.data={config['paths']['data']}"]
        found.append(evaluate.evaluate(run.path, data, sharpness=True, prune=not of_average, average=of_average))
    there, on_cpu = found
    assert_equal(there["metrics"], on_cpu["metrics"])
    assert "sharpness/trace" in there["metrics"] and "lipschitz/upper" in there["metrics"]
    if not of_average:
        assert_equal(there["pruned"]["metrics"], on_cpu["pruned"]["metrics"])
        smaller = there["pruned"]["model"]
        assert {p.device for p in smaller.parameters()} == {PRETEND}
        assert there["pruned"]["footprint"].parameters == sum(p.numel() for p in smaller.parameters())
        assert there["pruned"]["footprint"].parameters < there["footprint"].parameters


def test_a_forward_is_timed_until_the_device_is_done():
    model, inputs, _ = problem()
    with waits() as found:
        footprint(model.to(PRETEND), inputs.to(PRETEND), repeats=4)
    assert sum(what.startswith("synchronize") for what in found) == 3 + 4


def test_products_with_the_hessian_do_not_wait():
    model, inputs, labels = problem()
    model.to(PRETEND)
    parameters = list(model.parameters())
    loss = sharpness.training_loss(model, inputs.to(PRETEND), labels.to(PRETEND))
    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
    product = sharpness.hessian_product(dict(zip(parameters, slopes, strict=True)), parameters)
    vector = torch.ones(sum(p.numel() for p in parameters)).to(PRETEND)
    with waits() as found:
        product(product(vector))
        product(product(vector.repeat(2, 1)))
    assert not found


# -- a stack

POINTS = (
    ("seed=0", "regularizer.strength=1e-2", "optimizer.lr=0.05"),
    ("seed=1", "regularizer.strength=0.3", "optimizer.lr=0.02"),
)
STACKS = (
    "regularizer=pathprox regularizer.balance=false train.clip_norm=0.3",
    "regularizer=pathprox optimizer=padam optimizer.weight_decay=0.1",
    "regularizer=pnorm optimizer=adam regularizer/over_time=warmup regularizer.over_time.epochs=1",
    "regularizer=l1 optimizer=sgds optimizer.weight_decay=0.1",
    "regularizer=scheduled optimizer.momentum=0.5 model=mlp_factorized",
    "regularizer=l2 optimizer=adamw regularizer.route=decoupled",
    "regularizer=coherent",
    "regularizer=coherent regularizer.coherence=norm_ratio optimizer=adam optimizer.eps=0.1 regularizer.route=separate",
    "regularizer=scheduled regularizer.scope=all optimizer=adam",
    "regularizer=l1 optimizer=adams optimizer.weight_decay=0.1",
)


def stack_on(where, configs, folder):
    members = []
    for config in configs:
        run = RunDirectory(folder / where.type, run_name(config))
        run.create()
        members.append(StackedRun(experiment(config, where), run, Recorder(run.metrics, 0, Mirror())))
    per_step = []
    with waits() as found:

        def at_the_end_of_a_step() -> bool:
            per_step.append(len(found))
            return False

        settings = configs[0]["train"]
        loop.fit(Stack(members, settings), settings, math.inf, at_the_end_of_a_step)
    rows = [[json.loads(line) for line in m.run.metrics.read_text().splitlines()] for m in members]
    states = [{part: checkpoint.load(m.run)[part] for part in ("model", "optimizer", "regularizer")} for m in members]
    return (rows, states), [b - a for a, b in itertools.pairwise(per_step)]


@pytest.mark.parametrize("choice", STACKS)
def test_a_stack_is_the_same_and_waits_once_on_a_log_line(choice, composed, tmp_path):
    configs = [composed(*choice.split(), *point) for point in POINTS]
    (there, found), (on_cpu, _) = (stack_on(where, configs, tmp_path) for where in (PRETEND, CPU))
    names = {configs[0][key]["name"] for key in ("regularizer", "optimizer")}
    # the products of a gate are taken in float64 on a device, on the CPU in float32 where its range suffices; for the
    # others see `tolerance_of`
    assert_equal(there, on_cpu, 1e-5 if "coherent" in choice or {"pnorm", "padam"} & names else 0.0)
    assert found == [1 if step % 2 == 0 else 0 for step in range(2, STEPS + 1)]


# -- and that all of this would be seen


class Peeks(L2):
    """Reads a value in every step."""

    def before_step(self):
        if self.params[0].norm().item() > 0:
            super().before_step()


class Forgets(L2):
    """Adds a tensor that it left on the CPU."""

    def before_step(self):
        for p in self.params:
            p.grad.add_(torch.zeros(p.shape))


def planted(method: type[L2]):
    def change(experiment: Experiment) -> None:
        experiment.regularizer = method.for_model(experiment.model, 1e-3)

    return change


def test_a_value_that_is_read_in_a_step_is_found(composed, tmp_path):
    found = Trained(composed("model=mlp"), PRETEND, tmp_path, change=planted(Peeks)).waits
    assert [len(found[step]) for step in sorted(found)] == [1, 2] * (STEPS // 2)
    assert "_local_scalar_dense" in found[1][0] and "tests/test_pretend_device.py:" in found[1][0]


def test_a_tensor_that_is_left_on_the_cpu_is_found(composed, tmp_path):
    with pytest.raises(RuntimeError, match=f"at least two devices, {NAME}:0 and cpu"):
        Trained(composed("model=mlp"), PRETEND, tmp_path, change=planted(Forgets))


def test_numbers_that_differ_are_found():
    with pytest.raises(AssertionError):
        assert_equal({"a": here(1.0)}, {"a": torch.tensor([1.0 + 1e-6])})
    assert_equal({"a": here(1.0), "b": [here(2.0)[0]]}, {"a": torch.ones(1), "b": [2.0]})
