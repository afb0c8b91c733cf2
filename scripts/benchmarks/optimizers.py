"""The cost of an optimizer's step: wdlab's optimizers and attached methods, against torch's fused AdamW."""

import importlib
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.setups import Setup
from benchmarks.timing import Case, Options, Row, Table, check_ordinary, measure
from wdlab.homogeneous import homogeneous_pairs
from wdlab.models import MLP
from wdlab.optimizers import SGDS, AdamS, PAdam
from wdlab.regularizers import L2, DecoupledDecay, PathProx, PNormDecay, Regularizer, ScheduledDecay

LR = 1e-4  # so small that weights keep their usual size over all timed steps
MOMENTUM = 0.9
COPIES = 3  # of the base case, torch's fused AdamW
SCHEDULED, PNORM = 5e-4, 1e-3  # strengths of the scheduled decay and of the p-norm decay
PROBLEM = (
    "one step on the parameters of a ReLU MLP, 784-{width}-{width}-{width}-{width}-{width}-10 with biases, float32, "
    "given fixed random gradients of scale 0.01"
)
EARLIER = "from earlier measurements, not measured here"
STATED = [
    ("released AdamS", "3.8-4.0", EARLIER),
    ("released pAdam", "5.7-8.7", EARLIER),
    ("released PathProx, balance and prox", "4.9-7.7", EARLIER),
]
AGAINST_UNFUSED = "against the row before: forward, backward and step"
ALLOCATOR = (
    "On the CPU, `make bench` sets the C library to keep freed memory. By default, the library gives memory back to "
    "the system in every step of some processes, and cases that make large temporaries (foreach, amsgrad, the AdamS of "
    "pytorch_optimizer) take two to three times as long there. `PAdam` and `PNormDecay` reuse their buffers."
)

Make = Callable[[list[Tensor]], torch.optim.Optimizer]

AdamW, Adam, SGD = (
    partial(optimizer, lr=LR, fused=True) for optimizer in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)
)


def table(options: Options) -> Table:
    """Return the times of a step of each optimizer.

    Weights and optimizer states are checked after the timing, since numbers that are not finite or denormal would make
    the times meaningless.

    Raises:
        RuntimeError: if a weight or a state is not finite, or if more than the share ``timing.DENORMAL`` is denormal.
    """
    bench = _Bench(options)
    base = [bench.step("torch AdamW fused", AdamW) for _ in range(COPIES)]
    cases, remarks = [*_torch(bench), *_ours(bench, options.compiled)], [ALLOCATOR]
    try:
        cases += _peers(bench)
        remarks.append("pytorch_optimizer's PAdam is another method (partially adaptive momentum) and is not compared.")
    except ImportError as error:
        remarks.append(f"The rows of pytorch_optimizer are left out, since it cannot be imported: {error}.")
    rows = measure("optimizers", base, cases, options)
    bench.check()
    rows += _steps_of_a_run(options)
    problem = PROBLEM.format(width=options.width)
    return Table("The cost of a step", base[0].what, COPIES, problem, rows, STATED, remarks)


def _steps_of_a_run(options: Options) -> list[Row]:
    """Return the rows of a whole training step of a run with Adam, with torch's default step (the base) and fused."""
    batch_size = options.sized(50, 10)
    network = ("dataset=mnist", "model=mlp", "model.depth=6", f"model.width={options.width}", "optimizer=adam")
    cases = []
    for fused, note, target in (("never", f"batch of {batch_size}", None), ("auto", AGAINST_UNFUSED, 0.75)):
        setup = Setup(options, *network, f"optimizer.lr={LR}", f"runtime.fused={fused}")
        batch = setup.images(batch_size).examples(slice(0, batch_size))
        what = f"a run's training step with Adam, runtime.fused={fused}"
        cases.append(Case(what, partial(setup.step(), *batch), target, note))
    return measure("a run's step", cases[:1], cases[1:], options)


class _Bench:
    """A maker of cases, each with its own network. The optimizers are kept for the ``check`` after the timing."""

    def __init__(self, options: Options) -> None:
        self._device, self._width = options.device, options.width
        self._made: list[tuple[str, torch.optim.Optimizer]] = []

    def step(self, what: str, make: Make, target: float | None = None, note: str = "") -> Case:
        """Return the case ``what`` of a step of the optimizer that ``make`` creates from a list of parameters."""
        optimizer = make(list(self._network().parameters()))
        self._made.append((what, optimizer))
        return Case(what, optimizer.step, target, note)

    def attached(self, what: str, method: type[Regularizer], strength: float, **settings: object) -> Case:
        """Return the case ``what`` of a step of torch's fused Adam with ``method(strength, **settings)`` attached."""
        network = self._network()
        optimizer = Adam(list(network.parameters()))
        self._made.append((what, optimizer))
        method.for_model(network, strength, **settings).attach(optimizer)
        return Case(what, optimizer.step)

    def pathprox(self, what: str, target: float, **settings: object) -> Case:
        """Return the case ``what`` of the work that PathProx with ``settings`` does after a step."""
        network = self._network()
        optimizer = SGD(list(network.parameters()))
        self._made.append((what, optimizer))
        method = PathProx(homogeneous_pairs(network), 1e-3, **settings)
        method.attach(optimizer)
        return Case(what, torch.no_grad()(method.after_step), target, "without the base optimizer's step")

    def _network(self) -> nn.Module:
        """Return a new MLP with random gradients."""
        torch.manual_seed(0)
        network = MLP((1, 28, 28), classes=10, width=self._width, depth=6)
        for p in network.parameters():
            p.grad = 0.01 * torch.randn_like(p)
        return network.to(self._device)

    def check(self) -> None:
        """Raise a RuntimeError if weights or optimizer states are not ordinary numbers (see ``check_ordinary``)."""
        for what, optimizer in self._made:
            tensors = [p.detach() for group in optimizer.param_groups for p in group["params"]]
            tensors += [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
            check_ordinary(what, tensors)


def _torch(bench: _Bench) -> list[Case]:
    """Return the cases of torch's own optimizers."""
    return [
        bench.step("torch AdamW foreach", partial(torch.optim.AdamW, lr=LR, foreach=True)),
        bench.step("torch Adam fused", Adam),
        bench.step("torch SGD fused", partial(SGD, momentum=MOMENTUM)),
    ]


def _ours(bench: _Bench, compiled: bool) -> list[Case]:
    """Return the cases of wdlab's optimizers, and of its methods attached to torch's optimizers."""
    adams, padam = partial(AdamS, lr=LR, weight_decay=SCHEDULED), partial(PAdam, lr=LR, weight_decay=PNORM)
    sgds = partial(SGDS, lr=LR, momentum=MOMENTUM, weight_decay=SCHEDULED)
    return [
        bench.step("AdamS(fused=True)", partial(adams, fused=True), 1.15),
        bench.step("AdamS(fused=True, amsgrad=True)", partial(adams, fused=True, amsgrad=True)),
        bench.step("SGDS(fused=True)", partial(sgds, fused=True)),
        bench.step("PAdam(fused=True), p=0.8", partial(padam, fused=True, p=0.8), 4.0),
        *(bench.step(f"PAdam(fused=True), p={p:g}", partial(padam, fused=True, p=p)) for p in (0.5, 1.0, 1.5)),
        *([bench.step("PAdam(compiled=True), p=0.8", partial(padam, compiled=True, p=0.8), 1.3)] if compiled else []),
        bench.attached("L2 on Adam fused", L2, 1e-4),
        bench.attached("DecoupledDecay on Adam fused", DecoupledDecay, 1e-2),
        bench.attached("ScheduledDecay on Adam fused", ScheduledDecay, SCHEDULED),
        bench.attached("PNormDecay on Adam fused, p=0.8", PNormDecay, PNORM, p=0.8),
        bench.pathprox("PathProx, balance and prox", 1.6),
        *([bench.pathprox("PathProx(compiled=True), balance and prox", 0.75, compiled=True)] if compiled else []),
    ]


def _peers(bench: _Bench) -> list[Case]:
    """Return the cases of the package pytorch_optimizer; a note states if wdlab's optimizer takes the same steps.

    Raises:
        ImportError: if the package is not installed.
    """
    theirs = importlib.import_module("pytorch_optimizer")
    adams, its_adams = (partial(make, weight_decay=SCHEDULED) for make in (AdamS, theirs.AdamS))
    sgds = partial(SGDS, momentum=MOMENTUM, weight_decay=SCHEDULED)
    sgdw = partial(theirs.SGDW, momentum=MOMENTUM, weight_decay=SCHEDULED / (1 - MOMENTUM))
    peers: Iterable[tuple[str, Callable, Callable]] = (
        ("AdamS", its_adams, adams),
        ("AdamS(ams_bound=True)", partial(its_adams, ams_bound=True), partial(adams, amsgrad=True)),
        ("SGDW, weight_decay=s / (1 - momentum)", sgdw, sgds),
    )
    return [
        bench.step(f"pytorch_optimizer {what}", partial(make, lr=LR), note=_compared(make, ours))
        for what, make, ours in peers
    ]


def _compared(theirs: Callable, ours: Callable, steps: int = 10) -> str:
    """Return in words how much the weights of two optimizers differ after float64 steps with strong decay.

    Args:
        theirs: creates the other package's optimizer from parameters and ``lr``.
        ours: creates wdlab's optimizer in the same way.
        steps: number of steps.
    """
    torch.manual_seed(0)
    start = [torch.randn(30, 20, dtype=torch.float64), torch.randn(30, dtype=torch.float64)]
    gradients = [[0.01 * torch.randn_like(w) for w in start] for _ in range(steps)]

    def end(make: Callable) -> Tensor:
        weights = [w.clone().requires_grad_() for w in start]
        optimizer = make(weights, lr=1.0)
        for step in gradients:
            for w, g in zip(weights, step, strict=True):
                w.grad = g.clone()
            optimizer.step()
        return torch.cat([w.detach().flatten() for w in weights])

    mine, its = end(ours), end(theirs)
    difference = ((its - mine).norm() / mine.norm()).item()
    verdict = "the same method" if difference < 1e-5 else "another method"
    return f"{verdict}: weights {difference:.1e} from ours after {steps} float64 steps"
