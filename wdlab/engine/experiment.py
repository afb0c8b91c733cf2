"""The objects that a run trains with, and the random state that its training starts from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wdlab.data import Data
from wdlab.engine.device import Machine
from wdlab.engine.fused import uses_fused_step
from wdlab.regularizers import Regularizer


@dataclass
class Experiment:
    """Everything that a run trains with, built by ``build_experiment``.

    Args:
        model: the network, on the device of ``machine``.
        data: the training, validation and test split, on the same device.
        optimizer: the optimizer of all parameters of ``model``.
        regularizer: the regularizer of ``model``. The loop attaches it to the optimizer.
        lr_factor: the schedule of the learning rate, see ``wdlab.schedules``.
        machine: device, precision and memory layout.
        seed: the random seed of the order of the batches.
    """

    model: nn.Module
    data: Data
    optimizer: torch.optim.Optimizer
    regularizer: Regularizer
    lr_factor: Callable[[int, int, int], float]
    machine: Machine
    seed: int

    @property
    def provenance(self) -> dict[str, Any]:
        """Everything about the machine and the optimizer's step that affects rounding, for ``provenance.json``."""
        return self.machine.provenance | {"fused": self.machine.stacked or uses_fused_step(self.optimizer)}


def set_random_state(start: dict[str, Any] | None, machine: Machine, seed: int) -> None:
    """Set torch's random state, which dropout draws from, for the training that begins or resumes now.

    The leader of a new run keeps the present state, and a resumed run continues with the state in its checkpoint. Other
    processes seed a state of their own, so that their dropout masks differ from the leader's.

    Args:
        start: the content of the checkpoint to resume from, None for a new run.
        machine: the machine of the run, with its process group and device.
        seed: the seed of the run.
    """
    if not machine.group.is_leader:
        torch.manual_seed(hash((seed, machine.group.rank, start["step"] if start else 0)) % 2**63)
    elif start is not None:
        torch.set_rng_state(start["rng"])
        of_device = start.get(f"rng_{machine.device.type}")
        if of_device is not None:
            torch.get_device_module(machine.device).set_rng_state(of_device, machine.device)
