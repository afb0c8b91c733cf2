"""The machine a run computes on: device, threads, precision, and the faster float32 matrix product where it is safe.

Called by ``train``, with the values of ``configs/runtime``.
"""

import contextlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wdlab.errors import ConfigError

KEYS = ("device", "precision", "threads", "onednn", "checkpoint_seconds")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "bf16")
ONEDNN = ("auto", "never")
WIDE = 256  # oneDNN's product beats MKL's from about this many columns on; below it is slower
FP32_ERROR = 1e-6  # largest relative error of a product that still counts as float32


@dataclass(frozen=True)
class Machine:
    """Where and how to compute; ``name`` and ``matmul`` go into the provenance."""

    device: torch.device
    precision: str
    name: str
    matmul: str

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of a forward pass."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def check(config: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a runtime value that is not allowed, or a device that is not there."""
    for key, allowed in (("device", DEVICES), ("precision", PRECISIONS), ("onednn", ONEDNN)):
        if config[key] not in allowed:
            raise ConfigError(f"runtime.{key}={config[key]}: must be one of {', '.join(allowed)}")
    if config["device"] == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device=cuda: no CUDA device is visible here; use runtime=auto or runtime=cpu")
    threads = config["threads"]
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ConfigError(f"runtime.threads={threads}: must be null or a whole number >= 1")
    seconds = config["checkpoint_seconds"]
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise ConfigError(f"runtime.checkpoint_seconds={seconds}: must be a number >= 0")


def set_up(config: Mapping[str, Any], model: nn.Module) -> Machine:
    """Apply ``configs/runtime`` to this process and choose the device for ``model``."""
    check(config)
    wanted = config["device"]
    use_cuda = torch.cuda.is_available() if wanted == "auto" else wanted == "cuda"
    device = torch.device("cuda" if use_cuda else "cpu")
    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # fp32 means float32, also in convolutions
    matmul = "torch default"
    if config["onednn"] == "auto" and device.type == "cpu" and _widest(model) >= WIDE and _onednn_is_float32():
        torch.set_float32_matmul_precision("medium")
        matmul = "oneDNN float32"
    return Machine(device, config["precision"], device_name(device), matmul)


def device_name(device: torch.device) -> str:
    """The name of the processor or GPU, as recorded beside every number."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _widest(model: nn.Module) -> int:
    return max((m.out_features for m in model.modules() if isinstance(m, nn.Linear)), default=0)


def _onednn_is_float32() -> bool:
    """Whether "medium" precision, which lets torch use oneDNN on the CPU, still gives float32 products here.

    On some processors it means bfloat16; a product is therefore compared with float64 first.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(128, 512, generator=generator), torch.randn(512, 512, generator=generator)
    exact = left.double() @ right.double()
    torch.set_float32_matmul_precision("medium")
    error = ((left @ right).double() - exact).norm() / exact.norm()
    torch.set_float32_matmul_precision("highest")
    return error.item() < FP32_ERROR
