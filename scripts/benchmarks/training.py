"""The cost of wdlab's training step in several precisions and memory layouts, against a plain PyTorch loop."""

from functools import partial

from torch import nn

from benchmarks.setups import Setup, bare_step
from benchmarks.timing import SPEED_UP, Case, Options, Page, Part, check_ordinary, part

# Smallest speed-ups on a CPU with few cores.
MLP_TARGETS = {"wdlab, fp32": 1.5, "wdlab, bf16": 2.2}
RESNET_TARGETS = {16: 2.2, 64: 2.9}  # by width
RESNET_REPEATS = {16: 20, 64: 7}  # by width
STEP = "forward, backward and SGD step of lr 0.1 on one random batch of"
COMPILED = "bf16, channels_last, torch.compile"
RUNTIMES = {
    "fp32, channels_last": (),
    "bf16, contiguous": ("runtime.precision=bf16", "runtime.channels_last=never"),
    "bf16, channels_last": ("runtime.precision=bf16",),
    COMPILED: ("runtime.precision=bf16", "runtime.compile=true"),
}


def table(options: Options) -> Page:
    """Return the times of a training step of an MLP and of ResNets.

    Weights are checked after the timing, since numbers that are not finite or denormal would make the times
    meaningless.

    Raises:
        RuntimeError: if a weight is not finite, or if more than the share ``timing.DENORMAL`` is denormal.
    """
    return Page("The cost of a training step", [_mlp(options), *(_resnet(options, width) for width in RESNET_TARGETS)])


def _mlp(options: Options) -> Part:
    """Return the times of a training step of an MLP."""
    network = ("dataset=mnist", "model=mlp", "model.depth=6", f"model.width={options.width}")
    cases = _Cases(options, options.sized(200, 20), network)
    base = cases.bare("PyTorch, fp32")
    precisions = {"wdlab, fp32": "fp32", "wdlab, bf16": "bf16"}
    ours = [cases.ours(what, MLP_TARGETS[what], f"runtime.precision={p}") for what, p in precisions.items()]
    hidden = "-".join([str(options.width)] * 5)
    problem = f"ReLU MLP 784-{hidden}-10; {STEP} {cases.batch_size}"
    return cases.measured(f"MLP, width {options.width}", problem, base, ours, options)


def _resnet(options: Options, width: int) -> Part:
    """Return the times of a training step of a ResNet of the given width."""
    model, size = options.sized("resnet18", "resnet8"), options.sized(width, width // 8)
    network = ("dataset=cifar10", f"model={model}", f"model.width={size}")
    cases = _Cases(options, options.sized(128, 4), network)
    base = cases.bare("PyTorch, fp32, contiguous")
    targets = {"bf16, channels_last": RESNET_TARGETS[width]}
    runtimes = {what: runtime for what, runtime in RUNTIMES.items() if options.compiled or what != COMPILED}
    ours = [cases.ours(f"wdlab, {what}", targets.get(what), *runtime) for what, runtime in runtimes.items()]
    depth = options.sized(18, 8)
    problem = f"ResNet-{depth} of width {size}; {STEP} {cases.batch_size} images of 3 x 32 x 32"
    title = f"ResNet-{depth}, width {size}"
    return cases.measured(title, problem, base, ours, options.at_most(RESNET_REPEATS[width]))


class _Cases:
    """A maker of cases of one architecture, all with the same batch. The networks are kept for a check at the end."""

    def __init__(self, options: Options, batch_size: int, network: tuple[str, ...]) -> None:
        self.batch_size, self._options, self._network = batch_size, options, network
        self._batch = Setup(options, *network).images(batch_size).examples(slice(0, batch_size))
        self._made: list[tuple[str, nn.Module]] = []

    def bare(self, what: str) -> Case:
        """Return the case ``what`` of a step of a plain PyTorch loop."""
        step, model = bare_step(self._options, *self._network)
        self._made.append((what, model))
        return Case(what, partial(step, *self._batch))

    def ours(self, what: str, target: float | None, *runtime: str) -> Case:
        """Return the case ``what`` of a step of wdlab's loop, with ``runtime`` overrides; a GPU has no target."""
        setup = Setup(self._options, *self._network, *runtime)
        self._made.append((what, setup.model))
        note = setup.machine.matmul if setup.machine.precision == "fp32" and setup.switches.matmul == "medium" else ""
        on_cpu = self._options.device.type == "cpu"
        return Case(what, partial(setup.step(), *self._batch), target if on_cpu else None, note)

    def measured(self, title: str, problem: str, base: Case, cases: list[Case], options: Options) -> Part:
        """Return the times of the cases, after a check that all weights are ordinary numbers (``check_ordinary``)."""
        made = part(title, problem, base, cases, options, SPEED_UP, (self.batch_size, "images"))
        for what, model in self._made:
            check_ordinary(what, model.parameters())
        return made
