"""The layout of networks in memory: on older processors too, gradients do not depend on it."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from wdlab.engine import device
from wdlab.models import VGG, ResNet

OLDER = {"AVX2": ("avx2", "AVX2"), "SSE4.1": ("default", "SSE41")}  # instruction sets, as torch and oneDNN name them
TOLERANCE = 1e-3  # of float32 gradients added up in another order, relative to the largest


def convolution(channels: int, outputs: int = 8) -> nn.Module:
    """A network of one strided 1x1 convolution."""
    return nn.Sequential(nn.Conv2d(channels, outputs, 1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def networks() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Known cases, and every kind of convolutional network of the lab at its smallest width, each with a batch.

    The depths left out repeat layers of those here.
    """
    found = {f"1x1 of {c}": (convolution(c), torch.randn(32, c, 32, 32)) for c in (1, 4, 5, 7, 8, 10)}
    small = torch.randn(8, 3, 16, 16)
    for depth in (8, 18):
        found[f"resnet{depth}"] = ResNet((3, 16, 16), 10, 1, depth), small
    for width in (4, 7, 8):
        found[f"resnet8 of width {width}"] = ResNet((3, 16, 16), 10, width, 8), small
    for depth in (11, 19):
        for batch_norm in (False, True):
            found[f"vgg{depth}, batch norm {batch_norm}"] = VGG((3, 16, 16), 10, 1, depth, batch_norm), small
    return found


def gradients(model: nn.Module, batch: torch.Tensor) -> list[torch.Tensor]:
    """Of a loss by weights and inputs, and of these gradients' square sum by the weights: a double backward.

    In evaluation mode: batch norm over a few examples of one channel would magnify rounding.
    """
    model.eval()
    parameters = list(model.parameters())
    batch = batch.clone().requires_grad_()
    first = torch.autograd.grad(model(batch).square().sum(), [*parameters, batch], create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), parameters, materialize_grads=True)
    return [*first, *second]


def largest_errors() -> dict[str, float]:
    """For each network: the largest error of a gradient in the lab's layout against the contiguous one, relative."""
    machine = device.Machine(torch.device("cpu"), "fp32", "", "", channels_last=True)
    errors = {}
    for name, (model, batch) in networks().items():
        expected = gradients(model.double(), batch.double())
        found = gradients(machine.place(model.float()), batch)
        pairs = zip(found, expected, strict=True)
        errors[name] = max(((a - b).abs().max() / b.abs().max().clamp(min=1e-6)).item() for a, b in pairs)
    return errors


@pytest.mark.parametrize("older", OLDER)
def test_gradients_do_not_depend_on_the_layout_on_older_processors(older):
    """With one thread and with two, in a process of their own, since what is feared corrupts memory."""
    aten, onednn = OLDER[older]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn}
    script = "import wdlab, torch; from tests.engine.test_layout import largest_errors; torch.manual_seed(0)\n"
    script += "for threads in (1, 2): torch.set_num_threads(threads); print(largest_errors())"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-500:]}"
    for errors in map(eval, done.stdout.splitlines()):
        assert len(errors) == 15
        assert {name: error for name, error in errors.items() if not error < TOLERANCE} == {}
    assert len(done.stdout.splitlines()) == 2


def test_only_networks_without_narrow_strided_convolutions_lie_channels_last():
    assert not device.channels_last_is_safe(convolution(7)) and device.channels_last_is_safe(convolution(8))
    assert not device.channels_last_is_safe(ResNet((3, 8, 8), 10, 7, 8))
    assert device.channels_last_is_safe(ResNet((3, 8, 8), 10, 8, 8))
    assert device.channels_last_is_safe(nn.Conv2d(4, 8, 1)) and device.channels_last_is_safe(nn.Conv2d(4, 8, 3, 2))
    machine = device.Machine(torch.device("cpu"), "fp32", "", "", channels_last=True)
    network = convolution(4).to(memory_format=torch.channels_last)
    assert machine.place(network)[0].weight.stride() == (4, 1, 1, 1)
    wide = machine.place(nn.Conv2d(8, 8, 3))
    assert wide.weight.is_contiguous(memory_format=torch.channels_last) and not wide.weight.is_contiguous()
