"""Choices that depend on the processor: number of threads, speed of number formats, memory. Called by ``device``.

Processors differ: with AVX2 alone, bfloat16 is emulated and slow; on a busy machine, threads that wait for each other
lose most of their time. The choices made here change results by rounding only, and are recorded with the run.
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
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names and values of glibc's malloc.h
KEPT_BYTES, OLD_KEPT_BYTES = 2**30, 2**25  # the second is the largest M_MMAP_THRESHOLD of older versions of glibc
MIN_MULTIPLY_ADDS = 10_000_000  # of a forward pass; with fewer, a second thread saves no time
MIN_CORE_SHARE = 0.8  # share of a core that each thread has to get; with less, the machine counts as busy
TRIALS, TRIAL_SECONDS = 3, 0.03  # of the measurement of that share
TIMED_PRODUCTS = 5  # per number format


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
    """Return torch's number of threads at the first call in this process, by default one per core."""
    return torch.get_num_threads()


def threads_for(model: nn.Module, examples: int | None) -> int:
    """Return the number of threads to train a network with: all that are available, or one.

    One thread is as fast or faster in two cases: if a step has little work, and if other programs use the cores, since
    threads that wait for one that is not scheduled lose more time than they save.

    Args:
        model: the network.
        examples: the number of examples in a batch (for text, of characters), summed over all runs that are computed
            together; None if not known.
    """
    most = available_threads()
    if most == 1 or (examples is not None and multiply_adds(model) * examples < MIN_MULTIPLY_ADDS):
        return 1
    return most if share_of_cores(most) >= MIN_CORE_SHARE else 1


def multiply_adds(model: nn.Module) -> float:
    """Return a lower bound on the multiply-adds of a forward pass per example; infinity if there are convolutions."""
    if any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules()):
        return float("inf")
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def share_of_cores(threads: int) -> float:
    """Return the share of a core, in [0, 1], that each of ``threads`` threads gets while all of them compute.

    It is the largest of three measurements, which take 0.1 s in all, so that a short disturbance does not count.
    """
    before, values = torch.get_num_threads(), torch.ones(2**18)
    torch.set_num_threads(threads)
    try:
        return max(_share_in_trial(values, threads) for _ in range(TRIALS))
    finally:
        torch.set_num_threads(before)


def _share_in_trial(values: Tensor, threads: int) -> float:
    """Return the share of one measurement: processor time divided by elapsed time and number of threads."""
    values.mul_(1.0)  # starts the threads
    used, start = time.process_time(), time.perf_counter()
    while time.perf_counter() - start < TRIAL_SECONDS:
        values.mul_(1.0)
    seconds = time.perf_counter() - start
    return min(1.0, (time.process_time() - used) / (seconds * threads))


@functools.cache
def bf16_time_ratio(convolution: bool) -> float:
    """Return the time of a bfloat16 product divided by that of a float32 product; above 1 if bfloat16 is emulated.

    Args:
        convolution: True compares 3x3 convolutions, False matrix products.
    """
    if convolution:
        left = torch.ones(8, 32, 16, 16).to(memory_format=torch.channels_last)
        right, product = torch.ones(32, 32, 3, 3), nn.functional.conv2d
    else:
        left, right, product = torch.ones(128, 256), torch.ones(256, 256), torch.mm
    narrow = left.bfloat16(), right.bfloat16()
    return _seconds(lambda: product(*narrow)) / _seconds(lambda: product(left, right))


def _seconds(run: Callable[[], object]) -> float:
    """Return the median time of a call of ``run`` in seconds."""
    run()  # not timed: the first call is slower
    times = []
    for _ in range(TIMED_PRODUCTS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def onednn_is_float32() -> bool:
    """Return True if torch's "medium" precision for products, which enables oneDNN, is float32 on this processor.

    On some processors "medium" means bfloat16. The check compares one product with float64.
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
    """Make the C library reuse the memory of freed tensors, and return True if that succeeded.

    By default glibc returns large blocks to the system at once, and the system clears them again in every step. No
    result depends on this setting. Nothing is changed if the user has set a ``MALLOC_...`` variable, or if the C
    library is not glibc.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function, or no such library (Windows)
        return False
    if not mallopt(M_MMAP_THRESHOLD, KEPT_BYTES) and not mallopt(M_MMAP_THRESHOLD, OLD_KEPT_BYTES):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
