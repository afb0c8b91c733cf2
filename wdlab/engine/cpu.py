"""Choices that depend on the processor: number of threads, number formats, reuse of memory. Called by ``device``.

The fastest choice differs between machines: a processor with AVX2 but not AVX-512 emulates bfloat16 slowly, and threads
on a busy machine lose most of their time waiting for each other. The choices made here change results by rounding only,
and the number of threads and the matrix product are recorded with the run.
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

MAX_FP32_ERROR = 1e-6  # largest relative error of a product that still counts as float32
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt, from malloc.h
KEPT_BLOCK_BYTES = 2**30  # value of both thresholds: freed blocks below this size are kept
OLD_GLIBC_LIMIT = 2**25  # the largest M_MMAP_THRESHOLD that older versions of glibc accept
MIN_MULTIPLY_ADDS = 10_000_000  # in the forward pass of a batch; with fewer, a second thread saves no time
MIN_CORE_SHARE = 0.8  # share of a core that each thread must get; with less, the machine counts as busy
CORE_SHARE_TRIALS, TRIAL_SECONDS = 3, 0.03  # number and length of the measurements of the share of a core
TIMED_PRODUCTS = 5  # number of timed products per number format


def processor_name() -> str:
    """Return the processor's name and the widest instruction set that torch uses on it, such as ``AMD EPYC (AVX2)``."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    return f"{processor} ({torch.backends.cpu.get_cpu_capability()})"


@functools.cache
def available_threads() -> int:
    """Return torch's number of threads at the first call in this process, by default one per core."""
    return torch.get_num_threads()


def threads_for(model: nn.Module, examples: int | None) -> int:
    """Return the number of CPU threads to train a network with: all available threads, or one.

    One thread is at least as fast in two cases: if a step has little work, and if other programs use the cores. In the
    second case all threads wait whenever one of them is not scheduled, which costs more time than they save.

    Args:
        model: the network.
        examples: the number of examples in a training batch (for text, the number of characters), times the number of
            runs that are trained side by side; None if it is not known.
    """
    most = available_threads()
    if most == 1 or (examples is not None and multiply_adds(model) * examples < MIN_MULTIPLY_ADDS):
        return 1
    return most if share_of_cores(most) >= MIN_CORE_SHARE else 1


def multiply_adds(model: nn.Module) -> float:
    """Return a lower bound on the multiply-adds of a forward pass of one example; inf if the model has convolutions."""
    if any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules()):
        return float("inf")
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def share_of_cores(threads: int) -> float:
    """Measure the share of a core, in [0, 1], that each of ``threads`` threads gets while all of them compute.

    The largest of three measurements is returned, so that a short disturbance does not count. They take 0.1 s together.
    """
    before, values = torch.get_num_threads(), torch.ones(2**18)
    torch.set_num_threads(threads)
    try:
        return max(_share_in_trial(values, threads) for _ in range(CORE_SHARE_TRIALS))
    finally:
        torch.set_num_threads(before)


def _share_in_trial(values: Tensor, threads: int) -> float:
    """Measure the share of a core that each thread gets while all threads multiply ``values`` for ``TRIAL_SECONDS``.

    The share is the processor time divided by the elapsed time and by the number of threads.
    """
    values.mul_(1.0)  # starts the threads
    used, start = time.process_time(), time.perf_counter()
    while time.perf_counter() - start < TRIAL_SECONDS:
        values.mul_(1.0)
    seconds = time.perf_counter() - start
    return min(1.0, (time.process_time() - used) / (seconds * threads))


@functools.cache
def bf16_time_ratio(convolution: bool) -> float:
    """Measure the time of a bfloat16 product divided by the time of a float32 product; above 1 if bfloat16 is emulated.

    Args:
        convolution: True measures 3x3 convolutions, False matrix products.
    """
    if convolution:
        left = torch.ones(8, 32, 16, 16).to(memory_format=torch.channels_last)
        right, product = torch.ones(32, 32, 3, 3), nn.functional.conv2d
    else:
        left, right, product = torch.ones(128, 256), torch.ones(256, 256), torch.mm
    narrow = left.bfloat16(), right.bfloat16()
    return _seconds(lambda: product(*narrow)) / _seconds(lambda: product(left, right))


def _seconds(run: Callable[[], object]) -> float:
    """Return the median time of ``TIMED_PRODUCTS`` calls of ``run`` in seconds."""
    run()  # not timed: the first call is slower
    times = []
    for _ in range(TIMED_PRODUCTS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def onednn_is_float32() -> bool:
    """Return True if matrix products with torch's precision "medium" are as exact as float32 on this processor.

    On the CPU, "medium" selects oneDNN's product, which uses bfloat16 on some processors. One product is compared with
    its value in float64. Afterwards torch's precision is "highest".
    """
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(128, 512, generator=generator), torch.randn(512, 512, generator=generator)
    exact = left.double() @ right.double()
    torch.set_float32_matmul_precision("medium")
    error = ((left @ right).double() - exact).norm() / exact.norm()
    torch.set_float32_matmul_precision("highest")
    return error.item() < MAX_FP32_ERROR


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
    except (AttributeError, OSError, TypeError):  # the C library has no mallopt, or cannot be opened (Windows)
        return False
    if not mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES) and not mallopt(M_MMAP_THRESHOLD, OLD_GLIBC_LIMIT):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT_BLOCK_BYTES))
