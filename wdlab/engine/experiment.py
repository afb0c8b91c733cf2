"""Everything that a run trains with, and the random state that it starts from."""

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
    """Everything that a run trains with, built by ``build_experiment``.

    Args:
        model: on the device of ``machine``.
        data: the three splits, on the same device.
        optimizer: of all the model's parameters.
        regularizer: not attached; the loop attaches it.
        lr_factor: schedule of the learning rate, see ``wdlab.schedules``.
        machine: device, precision and layout.
        seed: of the order of the batches.
    """

    model: nn.Module
    data: Data
    optimizer: torch.optim.Optimizer
    regularizer: Regularizer
    lr_factor: Callable[[int, int, int], float]
    machine: Machine
    seed: int


def set_random_state(start: dict[str, Any] | None, machine: Machine, seed: int) -> None:
    """Set the random state that dropout draws from.

    Args:
        start: the checkpoint to resume from, None at the beginning.
        machine: a process that does not lead draws other masks than the leader.
        seed: of the run.
    """
    if not machine.group.is_leader:
        torch.manual_seed(hash((seed, machine.group.rank, start["step"] if start else 0)) % 2**63)
    elif start is not None:
        torch.set_rng_state(start["rng"])
        of_device = start.get(f"rng_{machine.device.type}")
        if of_device is not None:
            torch.get_device_module(machine.device).set_rng_state(of_device, machine.device)
