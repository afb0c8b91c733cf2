"""The machine a run computes on: device, threads, precision, memory layout, and what is faster where it is safe.

All of it follows from the values of ``configs/runtime``.
"""

import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wdlab.engine import cpu, gpus, parallel
from wdlab.errors import ConfigError
from wdlab.settings import RuntimeSettings

WIDE = 256  # oneDNN's product beats MKL's from about this many columns on; below it is slower
UNSAFE_BELOW = 8  # input channels of a strided 1x1 convolution, see ``channels_last_is_safe``

log = logging.getLogger("wdlab")


@dataclass(frozen=True)
class Machine:
    """The device and the way to compute on it.

    Args:
        device: of everything.
        precision: fp32, tf32 (matrix products and convolutions with 10 bits of mantissa) or bf16 (autocast).
        name: of the processor or GPU.
        matmul: the float32 matrix product in use.
        channels_last: True if images and convolutions lie in memory with their channels together.
        compiled: True if the network goes through ``torch.compile``.
        group: the processes that share the run, one unless torchrun started several.
        stacked: True if several runs are computed side by side in this process.
    """

    device: torch.device
    precision: str
    name: str
    matmul: str
    channels_last: bool = False
    compiled: bool = False
    group: parallel.Group = parallel.ALONE
    stacked: bool = False

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context of a forward pass."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def place(self, model: nn.Module) -> nn.Module:
        """Move a network here, in the layout chosen where that is safe for it. In place, as torch does it."""
        last = self.channels_last and channels_last_is_safe(model)
        return model.to(self.device, memory_format=torch.channels_last if last else torch.contiguous_format)

    def training_form(self, model: nn.Module) -> Callable[..., torch.Tensor]:
        """Return what a training step calls instead of ``model``: compiled, gradients averaged over the processes."""
        forward = self.group.average_gradients(model, self.device)
        return torch.compile(forward) if self.compiled else forward

    @property
    def provenance(self) -> dict[str, Any]:
        """All that decides the rounding of a run's numbers."""
        return {
            "device": self.name,
            "threads": torch.get_num_threads(),
            "precision": self.precision,
            "matmul": self.matmul,
            "channels_last": self.channels_last,
            "compile": self.compiled,
            "stacked": self.stacked,
            "processes": self.group.size,
        }


def check(settings: RuntimeSettings, here: bool = True) -> None:
    """Raise a ConfigError for a precision that the device does not have, or a device that this machine does not have.

    Args:
        settings: whose types and ranges are right, see :mod:`wdlab.settings`.
        here: False if the run will be on another machine, whose devices cannot be checked here.
    """
    if here and settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device=cuda: no CUDA device is visible here; use runtime=auto or runtime=cpu")
    if settings.precision == "tf32" and not (_uses_cuda(settings) or (not here and settings.device == "auto")):
        raise ConfigError("runtime.precision=tf32: only on a CUDA device; use fp32 or bf16")


def set_up(
    settings: RuntimeSettings,
    model: nn.Module,
    stacked: bool = False,
    examples: int | None = None,
    threads: int | None = None,
) -> Machine:
    """Apply ``configs/runtime`` to this process and choose the device for a network.

    Args:
        settings: the values of ``configs/runtime``.
        model: the network, or one of those that are trained side by side.
        stacked: True if several are.
        examples: as in :func:`wdlab.engine.cpu.threads_for`.
        threads: number of threads of an earlier session of the run, kept where ``runtime.threads`` is null.
    """
    check(settings)
    device = chosen(settings)
    group = parallel.join(device)
    precision = settings.precision
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    if device.type == "cuda":
        torch.cuda.set_device(device)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
    else:
        cpu.keep_freed_memory()
        torch.set_num_threads(settings.threads or _threads(model, examples, threads))
        if precision == "bf16":
            _warn_of_slow_bf16(convolves)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"  # fp32 means float32, also in convolutions
    matmul = "TF32" if precision == "tf32" else "torch default"
    wide = stacked or _widest(model) >= WIDE
    if settings.onednn == "auto" and device.type == "cpu" and wide and cpu.onednn_is_float32():
        torch.set_float32_matmul_precision("medium")
        matmul = "oneDNN float32"
    channels_last = settings.channels_last == "auto" and convolves and channels_last_is_safe(model)
    return Machine(device, precision, device_name(device), matmul, channels_last, settings.compile, group, stacked)


@functools.cache  # once for all runs of a sweep
def _warn_of_slow_bf16(convolves: bool) -> None:
    if (factor := cpu.bf16_time_ratio(convolves)) > 1:
        log.warning("runtime.precision=bf16: products take %.1f times as long as in fp32 on this processor", factor)


def _threads(model: nn.Module, examples: int | None, before: int | None) -> int:
    """Return the number of threads of the run's earlier session, else what suits the network and the machine now."""
    if before is not None:
        return min(before, cpu.available_threads())
    return cpu.threads_for(model, examples)


def chosen(settings: RuntimeSettings) -> torch.device:
    """Return the device of ``configs/runtime``; of several GPUs the one that is this process's."""
    return torch.device("cuda", _own_gpu()) if _uses_cuda(settings) else torch.device("cpu")


@functools.cache
def _own_gpu() -> int:
    count, group = torch.cuda.device_count(), parallel.group()
    if count == 1 or group.size > 1:
        return group.local_rank
    return gpus.claim_gpu([str(torch.cuda.get_device_properties(index).uuid) for index in range(count)])


def _uses_cuda(settings: RuntimeSettings) -> bool:
    return torch.cuda.is_available() if settings.device == "auto" else settings.device == "cuda"


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor and its instruction set, as recorded next to every number."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu.name()


def _widest(model: nn.Module) -> int:
    return max((m.out_features for m in model.modules() if isinstance(m, nn.Linear)), default=0)


def channels_last_is_safe(model: nn.Module) -> bool:
    """Return False for a network with a 1x1 convolution of a stride above 1 that reads fewer than 8 channels.

    With channels last, oneDNN's gradient of such a convolution is wrong or corrupts memory on processors with AVX2
    (torch 2.15). Shortcuts of ResNets narrower than 8 are of this kind. The layout is the same on every processor.
    """
    return not any(
        isinstance(m, nn.Conv2d)
        and set(m.kernel_size) == {1}
        and max(m.stride) > 1
        and m.in_channels // m.groups < UNSAFE_BELOW
        for m in model.modules()
    )
