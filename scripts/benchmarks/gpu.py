"""The cost of stacks of MLPs and of an epoch of ResNet-18 on a GPU, and the share in which it is busy. Needs a GPU."""

import importlib.util
import threading
import time
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.setups import Setup
from benchmarks.stacked import NEVER, Sweep
from benchmarks.timing import SPEED_UP, Case, Options, Page, Part, part
from wdlab.data import Batches

REPEATS = 5
BATCH_SIZE = 128
STACKS = (32, 256, 1024)  # runs
ALONE = 4  # runs that are trained one after another
FEW = 3  # repeats
SAMPLES_EVERY = 0.05  # seconds between two samples of the utilization
FAST = ("runtime.precision=bf16",)
RUNTIMES = {
    "fp32, contiguous": ("runtime.channels_last=never",),
    "bf16, channels_last": FAST,
    "bf16, channels_last, torch.compile": (*FAST, "runtime.compile=true"),
}


def table(options: Options) -> Page | None:
    """Return the times of an epoch in each of ``RUNTIMES``, and of stacks of MLPs; None without a CUDA device."""
    if options.device.type != "cuda":
        return None
    return Page("Epochs and stacks on a GPU", [_stacks(options), _epochs(options)])


def _stacks(options: Options) -> Part:
    """Return the times of a training step of a run in stacks of ``STACKS`` runs, against one run after another."""
    steps = options.sized(200, 4)
    shape = ("dataset=digits", "model=mlp", "model.width=64", "model.depth=4", f"train.steps={steps}")
    length = (f"train.log_every={NEVER}", f"train.eval_every={NEVER}")

    def stack(runs: int) -> Callable[[], float]:
        sweep = Sweep(options, runs, (*shape, *length))
        return lambda: sweep.side_by_side() / runs

    alone = Sweep(options, ALONE, (*shape, *length))
    base = Case("one after another", lambda: alone.one_by_one() / ALONE, timed=True)
    cases = [Case(f"{runs} runs, stacked", stack(runs), timed=True) for runs in options.sized(STACKS, (2, 3))]
    problem = (
        f"a step of a run of digits with a ReLU MLP, 4 layers, width 64, batches of 64, L2, in runs of {steps} steps "
        "with records at both ends"
    )
    return part("MLPs", problem, base, cases, options.at_most(FEW), SPEED_UP, (1, "steps of a run"))


def _epochs(options: Options) -> Part:
    epochs = {
        what: _Epoch(options, *runtime)
        for what, runtime in RUNTIMES.items()
        if options.compiled or "compile" not in what
    }
    base, *cases = (Case(what, epoch) for what, epoch in epochs.items())
    images = next(iter(epochs.values())).images
    width = options.sized(64, 4)
    problem = (
        f"an epoch of {images} random images of 3 x 32 x 32 in the GPU's memory, crop and flip included; ResNet-18 "
        f"of width {width}, batches of {BATCH_SIZE}, SGD"
    )
    made = part(
        f"ResNet-18, width {width}", problem, base, cases, options.at_most(REPEATS), SPEED_UP, (images, "images")
    )
    made.remarks += [f"`{what}`: the GPU is busy {_busy(epoch, options)}." for what, epoch in epochs.items()]
    return made


class _Epoch:
    """A network with its training data. Each call trains it for one epoch; ``runtime`` are overrides of its config."""

    def __init__(self, options: Options, *runtime: str) -> None:
        network = ("dataset=cifar10", "model=resnet18", f"model.width={options.sized(64, 4)}")
        setup = Setup(options, *network, *runtime)
        split = setup.images(options.sized(50_000, 4 * BATCH_SIZE), varied=True)
        self._batches = Batches(split, BATCH_SIZE, seed=0)
        self._step, self._done = setup.step(), 0
        self.images = self._batches.steps_per_epoch * BATCH_SIZE

    def __call__(self) -> None:
        for _ in range(self._batches.steps_per_epoch):
            self._step(*self._batches(self._done))
            self._done += 1


def _busy(epoch: Callable[[], None], options: Options) -> str:
    """Return in words the share of an epoch in which the GPU is busy, and how the share was measured."""
    if importlib.util.find_spec("pynvml") is not None:
        return f"{_sampled(epoch, options):.0%} of an epoch (torch.cuda.utilization)"
    return f"{_profiled(epoch, options):.0%} of an epoch (time of its kernels in torch.profiler / wall time)"


def _sampled(epoch: Callable[[], None], options: Options) -> float:
    """Return the mean utilization, in [0, 1], that the GPU's driver reports during an epoch."""
    samples, over = [], threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLES_EVERY):
            samples.append(torch.cuda.utilization(options.device))

    watcher = threading.Thread(target=watch)
    watcher.start()
    epoch()
    options.synchronize()
    over.set()
    watcher.join()
    return sum(samples) / max(len(samples), 1) / 100


def _profiled(epoch: Callable[[], None], options: Options) -> float:
    """Return the summed time of an epoch's kernels as a share of the epoch's wall time."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        options.synchronize()
        start = time.perf_counter()
        epoch()
        options.synchronize()
        seconds = time.perf_counter() - start
    kernels = [e for e in profiled.key_averages() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    return sum(kernel.self_device_time_total for kernel in kernels) / 1e6 / seconds
