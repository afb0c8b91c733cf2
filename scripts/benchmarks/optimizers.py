"""The cost of a step: the drop-in optimizers and the attached methods, next to torch's fused AdamW."""

import importlib
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.timing import Case, Options, Table, check_ordinary, measure
from wdlab.homogeneous import homogeneous_pairs
from wdlab.models import MLP
from wdlab.optimizers import SGDS, AdamS, PAdam
from wdlab.regularizers import L2, DecoupledDecay, PathProx, PNormDecay, Regularizer, ScheduledDecay

LR = 1e-4  # so small that weights stay in their usual range over all repeated steps
MOMENTUM = 0.9
COPIES = 3  # of the base case, torch's fused AdamW
SCHEDULED, PNORM = 5e-4, 1e-3  # strengths
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
    """Measure the steps. Afterwards weights and states must still be ordinary numbers, or the times mean nothing.

    Raises:
        RuntimeError: if a weight or a state is not finite, or if more than a few are denormal.
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
    problem = PROBLEM.format(width=options.width)
    return Table("The cost of a step", base[0].what, COPIES, problem, rows, STATED, remarks)


class _Bench:
    """A maker of cases, each with its own network. Their optimizers are kept, to be checked at the end."""

    def __init__(self, options: Options) -> None:
        self._device, self._width = options.device, options.width
        self._made: list[tuple[str, torch.optim.Optimizer]] = []

    def step(self, what: str, make: Make, target: float | None = None, note: str = "") -> Case:
        """Return a case that takes steps of an optimizer."""
        optimizer = make(list(self._network().parameters()))
        self._made.append((what, optimizer))
        return Case(what, optimizer.step, target, note)

    def attached(self, what: str, method: type[Regularizer], strength: float, **settings: object) -> Case:
        """Return a case that takes steps of torch's fused Adam with a method attached."""
        network = self._network()
        optimizer = Adam(list(network.parameters()))
        self._made.append((what, optimizer))
        method.for_model(network, strength, **settings).attach(optimizer)
        return Case(what, optimizer.step)

    def pathprox(self, what: str, target: float, **settings: object) -> Case:
        """Return a case of the work that PathProx does after a step."""
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
        """Raise a RuntimeError if weights or states are no longer ordinary numbers."""
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
    """Return the cases of the drop-in optimizers and of the methods attached to torch's."""
    adams, padam = partial(AdamS, lr=LR, weight_decay=SCHEDULED), partial(PAdam, lr=LR, weight_decay=PNORM)
    sgds = partial(SGDS, lr=LR, momentum=MOMENTUM, weight_decay=SCHEDULED)
    return [
        bench.step("AdamS(fused=True)", partial(adams, fused=True), 1.25),
        bench.step("AdamS(fused=True, amsgrad=True)", partial(adams, fused=True, amsgrad=True)),
        bench.step("SGDS(fused=True)", partial(sgds, fused=True)),
        bench.step("PAdam(fused=True), p=0.8", partial(padam, fused=True, p=0.8), 5.0),
        *(bench.step(f"PAdam(fused=True), p={p:g}", partial(padam, fused=True, p=p)) for p in (0.5, 1.0, 1.5)),
        *([bench.step("PAdam(compiled=True), p=0.8", partial(padam, compiled=True, p=0.8), 1.6)] if compiled else []),
        bench.attached("L2 on Adam fused", L2, 1e-4),
        bench.attached("DecoupledDecay on Adam fused", DecoupledDecay, 1e-2),
        bench.attached("ScheduledDecay on Adam fused", ScheduledDecay, SCHEDULED),
        bench.attached("PNormDecay on Adam fused, p=0.8", PNormDecay, PNORM, p=0.8),
        bench.pathprox("PathProx, balance and prox", 2.7),
        *([bench.pathprox("PathProx(compiled=True), balance and prox", 1.0, compiled=True)] if compiled else []),
    ]


def _peers(bench: _Bench) -> list[Case]:
    """Return the cases of the package pytorch_optimizer; a note states whether they are the same methods.

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
    """Return how far two optimizers are apart after some float64 steps with strong decay."""
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
