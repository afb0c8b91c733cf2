"""The device that a run computes on, and its threads, precision, memory layout, matrix product and optimizer step.

They are chosen from ``configs/runtime``, the network and the machine. A faster variant is used only if it is correct.
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

ONEDNN_MIN_WIDTH = 256  # units of a layer; for fewer, oneDNN's product was measured slower than MKL's
CHANNELS_LAST_MIN_CHANNELS = 8  # input channels of a strided 1x1 convolution, see `channels_last_is_safe`

log = logging.getLogger("wdlab")


@dataclass(frozen=True)
class Machine:
    """The device of a run and the way to compute on it.

    Args:
        device: the device of the network, the optimizer and the data.
        precision: ``fp32``, ``tf32`` (products and convolutions with 10 bits of mantissa) or ``bf16`` (autocast).
        name: the name of the processor or GPU, see :func:`device_name`.
        matmul: the implementation of float32 matrix products, in words for the records.
        channels_last: True if the channels of a pixel are neighbours in memory, in images and in convolutions.
        compiled: True if the network is compiled by ``torch.compile``.
        group: the processes that share the run; a group of one unless torchrun started several.
        stacked: True if several runs are trained side by side in this process (``wdlab.stacked``).
        fused: True if optimizers take torch's fused step where torch has one, see :mod:`wdlab.engine.fused`.
    """

    device: torch.device
    precision: str
    name: str
    matmul: str
    channels_last: bool = False
    compiled: bool = False
    group: parallel.RunProcesses = parallel.SINGLE_PROCESS
    stacked: bool = False
    fused: bool = False

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context in which a forward pass runs: torch's autocast for ``bf16``, otherwise a null context."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def place(self, model: nn.Module) -> nn.Module:
        """Move a network to the device, in place, and return it.

        Its layout is channels last if ``channels_last`` is True and the layout is safe for this network.
        """
        last = self.channels_last and channels_last_is_safe(model)
        return model.to(self.device, memory_format=torch.channels_last if last else torch.contiguous_format)

    def training_form(self, model: nn.Module) -> Callable[..., torch.Tensor]:
        """Return the module that a training step calls in place of ``model``.

        It averages the gradients over the processes of ``group`` and is compiled if ``compiled`` is True.
        """
        forward = self.group.average_gradients(model, self.device)
        return torch.compile(forward) if self.compiled else forward

    @property
    def provenance(self) -> dict[str, Any]:
        """Everything about the machine that affects the rounding of a run's numbers, for ``provenance.json``."""
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


def check_runtime(settings: RuntimeSettings, here: bool = True) -> None:
    """Check that the device exists and supports the precision.

    Args:
        settings: settings whose types and ranges have been checked by :mod:`wdlab.settings`.
        here: False if the run will be trained on another machine, whose devices cannot be checked here.

    Raises:
        ConfigError: if no CUDA device is visible for ``device=cuda``, or ``precision=tf32`` is set for a CPU.
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
    """Apply ``configs/runtime`` to this process (threads, precision, process group) and choose a device for a network.

    The network is not moved; ``Machine.place`` moves it.

    Args:
        settings: the settings of ``configs/runtime``.
        model: the network, or one of the networks that are trained side by side.
        stacked: True if several networks are trained side by side.
        examples: as in :func:`wdlab.engine.cpu.threads_for`.
        threads: the number of CPU threads of the run's previous session, which is used again if ``settings.threads`` is
            None; None for a new run.

    Raises:
        ConfigError: see :func:`check_runtime`.
    """
    check_runtime(settings)
    device = chosen_device(settings)
    group = parallel.connect(device)
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
    torch.backends.cudnn.allow_tf32 = precision == "tf32"  # otherwise torch computes convolutions in TF32 with fp32 too
    matmul = "TF32" if precision == "tf32" else "torch default"
    wide = stacked or _widest(model) >= ONEDNN_MIN_WIDTH
    if settings.onednn == "auto" and device.type == "cpu" and wide and cpu.onednn_is_float32():
        torch.set_float32_matmul_precision("medium")
        matmul = "oneDNN float32"
    channels_last = settings.channels_last == "auto" and convolves and channels_last_is_safe(model)
    if device.type == "cuda" and precision == "fp32":  # an H200 takes twice as long so (ResNet-18, batch 128)
        channels_last = False
    return Machine(
        device,
        precision,
        device_name(device),
        matmul,
        channels_last,
        settings.compile,
        group,
        stacked,
        settings.fused == "auto",
    )


@functools.cache  # the time is measured and the warning logged once per process, not once per run
def _warn_of_slow_bf16(convolves: bool) -> None:
    """Log a warning if bfloat16 is slower than float32 on this processor, in convolutions or in matrix products."""
    if (factor := cpu.bf16_time_ratio(convolves)) > 1:
        log.warning("runtime.precision=bf16: products take %.1f times as long as in fp32 on this processor", factor)


def _threads(model: nn.Module, examples: int | None, before: int | None) -> int:
    """Return the number of CPU threads of the run's previous session, ``before``, as far as they are available.

    If ``before`` is None, return the number that :func:`wdlab.engine.cpu.threads_for` chooses.
    """
    if before is not None:
        return min(before, cpu.available_threads())
    return cpu.threads_for(model, examples)


def chosen_device(settings: RuntimeSettings) -> torch.device:
    """Return the device that ``configs/runtime`` selects; with several GPUs, the GPU of this process."""
    return torch.device("cuda", _own_gpu()) if _uses_cuda(settings) else torch.device("cpu")


@functools.cache
def _own_gpu() -> int:
    """Return the index of this process's GPU: its local rank under torchrun, otherwise a GPU that it claims once."""
    count, group = torch.cuda.device_count(), parallel.process_group()
    if count == 1 or group.size > 1:
        return group.local_rank
    return gpus.claim_gpu([str(torch.cuda.get_device_properties(index).uuid) for index in range(count)])


def _uses_cuda(settings: RuntimeSettings) -> bool:
    return torch.cuda.is_available() if settings.device == "auto" else settings.device == "cuda"


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor with its instruction set, for records and figures."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu.processor_name()


def _widest(model: nn.Module) -> int:
    return max((m.out_features for m in model.modules() if isinstance(m, nn.Linear)), default=0)


def channels_last_is_safe(model: nn.Module) -> bool:
    """Return False if a network has a 1x1 convolution with a stride above 1 and fewer than 8 input channels per group.

    With channels last, oneDNN's gradient of such a convolution is wrong or corrupts memory on processors with AVX2
    (torch 2.15). The shortcuts of ResNets narrower than 8 channels are such convolutions. The answer does not depend on
    the processor, so that a run has the same layout everywhere.
    """
    return not any(
        isinstance(m, nn.Conv2d)
        and set(m.kernel_size) == {1}
        and max(m.stride) > 1
        and m.in_channels // m.groups < CHANNELS_LAST_MIN_CHANNELS
        for m in model.modules()
    )
