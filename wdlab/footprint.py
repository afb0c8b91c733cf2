"""The cost of a model: parameters, bytes, and the latency of a forward pass."""

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wdlab.models.modes import evaluation

_WARM_UP = 3  # untimed forwards before the timed ones


@dataclass(frozen=True)
class Footprint:
    """The cost of a model: number of parameters, bytes of parameters and buffers, milliseconds per forward pass."""

    parameters: int
    bytes: int
    latency_ms: float


def footprint(model: nn.Module, inputs: Tensor, repeats: int = 20) -> Footprint:
    """Measure the size of a model, and the median time of its forward pass in evaluation mode after a warm-up.

    Args:
        model: a network on the device of ``inputs``. Its mode is restored afterwards. A shared parameter counts once.
        inputs: one batch, such as (batch, channels, height, width).
        repeats: number of timed forward passes.

    Raises:
        ValueError: if ``repeats`` is below 1.
    """
    return footprints([model], inputs, repeats)[0]


def footprints(models: Sequence[nn.Module], inputs: Tensor, repeats: int = 20) -> list[Footprint]:
    """Measure the :func:`footprint` of several models, timed in turns so that their times can be compared.

    Args:
        models: networks on the device of ``inputs``. Their modes are restored afterwards.
        inputs: one batch, the same for all models.
        repeats: number of timed forward passes of each model.

    Returns:
        The footprints in the order of ``models``.

    Raises:
        ValueError: if ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be a whole number >= 1")
    with contextlib.ExitStack() as stack, torch.inference_mode():
        for model in models:
            stack.enter_context(evaluation(model))
        rounds = [[_seconds_of_forward(model, inputs) for model in models] for _ in range(_WARM_UP + repeats)]
    return [_cost(model, times) for model, times in zip(models, zip(*rounds[_WARM_UP:], strict=True), strict=True)]


def _cost(model: nn.Module, seconds: Sequence[float]) -> Footprint:
    parameters = list(model.parameters())
    return Footprint(
        parameters=sum(p.numel() for p in parameters),
        bytes=sum(t.numel() * t.element_size() for t in (*parameters, *model.buffers())),
        latency_ms=1000 * statistics.median(seconds),
    )


def _seconds_of_forward(model: nn.Module, inputs: Tensor) -> float:
    start = time.perf_counter()
    model(inputs)
    if inputs.device.type != "cpu":
        torch.get_device_module(inputs.device).synchronize(inputs.device)  # a GPU computes after the return
    return time.perf_counter() - start
