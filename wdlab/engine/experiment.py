"""What a run trains with, and the random state it starts from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wdlab.data import Data
from wdlab.engine.device import Machine
from wdlab.regularizers import Regularizer


@dataclass
class Experiment:
    """Everything a run trains with, built by ``train``."""

    model: nn.Module
    data: Data
    optimizer: torch.optim.Optimizer
    regularizer: Regularizer
    lr_factor: Callable[[int, int, int], float]
    machine: Machine
    seed: int


def set_random_state(start: dict[str, Any] | None, machine: Machine, seed: int) -> None:
    """Of dropout. A process that does not lead draws other masks than the leader."""
    if not machine.group.is_leader:
        torch.manual_seed(hash((seed, machine.group.rank, start["step"] if start else 0)) % 2**63)
    elif start is not None:
        torch.set_rng_state(start["rng"])
        of_device = start.get(f"rng_{machine.device.type}")
        if of_device is not None:
            torch.get_device_module(machine.device).set_rng_state(of_device, machine.device)
