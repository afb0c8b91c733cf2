"""The cost of a model: parameters, bytes, and the latency of a forward pass."""

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_WARM_UP = 3  # forwards before the first that is timed


@dataclass(frozen=True)
class Footprint:
    """What a model costs: number of parameters, bytes of parameters and buffers, milliseconds per forward."""

    parameters: int
    bytes: int
    latency_ms: float


def footprint(model: nn.Module, inputs: Tensor, repeats: int = 20) -> Footprint:
    """Size of a model, and the median time of ``repeats`` forwards on ``inputs`` in evaluation mode, after a warm-up.

    Args:
        model: on the device of ``inputs``; left in the mode it is in. A shared parameter counts once.
        inputs: what the model maps, e.g. (batch, channels, height, width).
        repeats: number of forwards that are timed.

    Raises:
        ValueError: if ``repeats`` is below 1.
    """
    return footprints([model], inputs, repeats)[0]


def footprints(models: Sequence[nn.Module], inputs: Tensor, repeats: int = 20) -> list[Footprint]:
    """The :func:`footprint` of each of several models, timed in turns, so that times of one machine can be compared."""
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be a whole number >= 1")
    with contextlib.ExitStack() as stack, torch.inference_mode():
        for model in models:
            stack.enter_context(_in_evaluation(model))
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
        torch.get_device_module(inputs.device).synchronize(inputs.device)  # a forward only queues its work there
    return time.perf_counter() - start


@contextlib.contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards each back in its own: parts of a model may be frozen."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, training in modes.items():
            module.training = training
