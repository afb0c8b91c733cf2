"""One run on several processes, started by torchrun.

    torchrun --nproc_per_node 4 -m wdlab.train dataset=cifar10 model=resnet18

Every process takes an equal share of each batch, and DistributedDataParallel averages the gradients. A step therefore
equals the step on the whole batch up to rounding, except that batch norm normalizes over each process's share. The
process of rank 0, the leader, writes the records.
"""

import os
from dataclasses import dataclass

import torch
from torch import distributed, nn


@dataclass(frozen=True)
class RunProcesses:
    """The processes that share a run, and the place of this process among them.

    Attributes:
        rank: the number of this process, from 0.
        size: the number of processes.
        local_rank: the number of this process among the processes on its machine, from 0.
    """

    rank: int
    size: int
    local_rank: int

    @property
    def is_leader(self) -> bool:
        """True if this process is the leader, which writes the records."""
        return self.rank == 0

    def average_gradients(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return ``model`` in a wrapper whose backward pass averages the gradients over the processes.

        A group of one process returns ``model`` itself. ``device`` is the device of ``model``.
        """
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def any_true(self, flag: bool) -> bool:
        """Return True if ``flag`` is true in at least one process. All processes have to call it.

        They communicate between CPUs, so that no process waits for its GPU.
        """
        if self.size == 1:
            return flag
        votes = torch.tensor(int(flag))
        distributed.all_reduce(votes, distributed.ReduceOp.MAX, group=_channel)
        return bool(votes)


SINGLE_PROCESS = RunProcesses(rank=0, size=1, local_rank=0)


_channel: distributed.ProcessGroup | None = None  # gloo, for flags in main memory; None until `connect` sets it


def process_group() -> RunProcesses:
    """Return the process group that torchrun's environment variables describe, ``SINGLE_PROCESS`` without torchrun."""
    rank, size, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    return RunProcesses(rank, size, local_rank) if size > 1 else SINGLE_PROCESS


def connect(device: torch.device) -> RunProcesses:
    """Connect to the other processes of the run, if there are any and this is the first call.

    Args:
        device: the device of this process, which decides the backend for the gradients: NCCL or gloo.

    Returns:
        The group of processes, as :func:`process_group` returns it.
    """
    here = process_group()
    if here.size > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(here.local_rank)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        global _channel
        _channel = distributed.new_group(backend="gloo")
    return here


def broadcast_decision(go: bool | None = None) -> bool:
    """Return the leader's decision whether to train.

    Args:
        go: the decision; only the leader passes it. The other processes pass None and wait for the leader's call.
    """
    decision = [go]
    if distributed.is_initialized():
        distributed.broadcast_object_list(decision, src=0)
    return bool(decision[0])


def disconnect() -> None:
    """Disconnect from the other processes, if :func:`connect` has connected to them."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
