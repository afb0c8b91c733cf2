"""What the processor at hand is good at: threads, float32 and bfloat16 products, memory. Called by ``device``.

These machines differ: with AVX2 alone, bfloat16 is emulated and slow; beside other work, threads that wait for each
other lose most of their time. What is chosen here only rounds differently, and is recorded with the run.
"""

import contextlib
import ctypes
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

FP32_ERROR = 1e-6  # largest relative error of a product that still counts as float32
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MOST_KEPT, MOST_KEPT_BEFORE = 2**30, 2**25  # bytes; the second is what older versions allow for M_MMAP_THRESHOLD
ENOUGH_WORK = 10_000_000  # multiply-adds of a forward pass from which on a second thread saves time
FREE = 0.8  # of a core that each thread has to get, or the machine counts as busy
TRIALS, TRIAL_SECONDS = 3, 0.03
PRODUCTS = 5  # that are timed of each type


def name() -> str:
    """Return the processor's name and the widest instruction set that torch uses on it: ``AMD EPYC (AVX2)``."""
    found = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                found = line.split(":", 1)[1].strip()
                break
    return f"{found} ({torch.backends.cpu.get_cpu_capability()})"


@functools.cache
def available_threads() -> int:
    """Return how many threads torch was given when this process began to train, by default one per core."""
    return torch.get_num_threads()


def threads_for(model: nn.Module, examples: int | None) -> int:
    """Return how many threads to train a network with.

    One where more would not be faster: where a step has little work, and where other programs take the cores, since
    threads that wait for one that is not running lose more time than they save.

    Args:
        model: the network.
        examples: of a batch, over all runs that are computed together; of texts the characters. None if not known.
    """
    most = available_threads()
    if most == 1 or (examples is not None and multiply_adds(model) * examples < ENOUGH_WORK):
        return 1
    return most if share_of_cores(most) >= FREE else 1


def multiply_adds(model: nn.Module) -> float:
    """Return a lower bound on the multiply-adds of a forward pass per example; infinite with convolutions."""
    if any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules()):
        return float("inf")
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def share_of_cores(threads: int) -> float:
    """Return the processor time that each of so many threads gets per second while all of them compute, in [0, 1].

    The largest of three measurements, 0.1 s in all: a short disturbance is no busy machine.
    """
    before, values = torch.get_num_threads(), torch.ones(2**18)
    torch.set_num_threads(threads)
    try:
        return max(_share_in_trial(values, threads) for _ in range(TRIALS))
    finally:
        torch.set_num_threads(before)


def _share_in_trial(values: Tensor, threads: int) -> float:
    values.mul_(1.0)  # starts the threads
    used, start = time.process_time(), time.perf_counter()
    while time.perf_counter() - start < TRIAL_SECONDS:
        values.mul_(1.0)
    seconds = time.perf_counter() - start
    return min(1.0, (time.process_time() - used) / (seconds * threads))


@functools.cache
def bf16_factor(convolution: bool) -> float:
    """Return the time of a bfloat16 product divided by that of a float32 one; above 1 where bfloat16 is emulated.

    Args:
        convolution: compare 3x3 convolutions, else matrix products.
    """
    if convolution:
        left = torch.ones(8, 32, 16, 16).to(memory_format=torch.channels_last)
        right, product = torch.ones(32, 32, 3, 3), nn.functional.conv2d
    else:
        left, right, product = torch.ones(128, 256), torch.ones(256, 256), torch.mm
    narrow = left.bfloat16(), right.bfloat16()
    return _seconds(lambda: product(*narrow)) / _seconds(lambda: product(left, right))


def _seconds(run: Callable[[], object]) -> float:
    """Return the median time of a call, in seconds."""
    run()
    times = []
    for _ in range(PRODUCTS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def onednn_is_float32() -> bool:
    """Return True if "medium" precision, which lets torch use oneDNN, still gives float32 products here.

    On some processors it means bfloat16; a product is therefore compared with float64 first.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(128, 512, generator=generator), torch.randn(512, 512, generator=generator)
    exact = left.double() @ right.double()
    torch.set_float32_matmul_precision("medium")
    error = ((left @ right).double() - exact).norm() / exact.norm()
    torch.set_float32_matmul_precision("highest")
    return error.item() < FP32_ERROR


@functools.cache
def keep_freed_memory() -> bool:
    """Have the C library keep the memory of freed tensors for the next ones, and return True if it does.

    glibc gives large blocks back to the system at once, which clears them anew at every step. No number depends on it.
    Where ``MALLOC_...`` variables are set they decide; another C library is left unchanged.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function, or no such library (Windows)
        return False
    if not mallopt(M_MMAP_THRESHOLD, MOST_KEPT) and not mallopt(M_MMAP_THRESHOLD, MOST_KEPT_BEFORE):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, MOST_KEPT))
