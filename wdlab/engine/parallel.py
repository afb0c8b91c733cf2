"""One run on several processes, started by torchrun: who leads, who has which share, whose gradients are averaged.

    torchrun --nproc_per_node 4 -m wdlab.train dataset=cifar10 model=resnet18

Every process takes its share of each batch; DistributedDataParallel averages the gradients, so a step is the step on
the whole batch (up to rounding; batch norm sees each process's share alone). The leader keeps the records.
"""

import os
from dataclasses import dataclass

import torch
from torch import distributed, nn


@dataclass(frozen=True)
class Group:
    """The processes of a run: this one's ``rank`` of ``size``, and its number on its machine."""

    rank: int
    size: int
    local_rank: int

    @property
    def is_leader(self) -> bool:
        """Whether this process keeps the records."""
        return self.rank == 0

    def average_gradients(self, model: nn.Module, device: torch.device) -> nn.Module:
        """``model`` with gradients that are averaged over the processes in every backward pass."""
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def any_true(self, flag: bool) -> bool:
        """Whether ``flag`` is true in some process. The device is not waited for."""
        if self.size == 1:
            return flag
        votes = torch.tensor(int(flag))
        distributed.all_reduce(votes, distributed.ReduceOp.MAX, group=_channel)
        return bool(votes)


ALONE = Group(rank=0, size=1, local_rank=0)


_channel: distributed.ProcessGroup | None = None  # between the hosts, for what does not concern the devices


def group() -> Group:
    """The processes that torchrun says there are."""
    rank, size, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    return Group(rank, size, local_rank) if size > 1 else ALONE


def join(device: torch.device) -> Group:
    """Meet the other processes, once."""
    here = group()
    if here.size > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(here.local_rank)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        global _channel
        _channel = distributed.new_group(backend="gloo")
    return here


def broadcast_go(go: bool | None = None) -> bool:
    """Whether to train: the leader says it (``go``), everybody else waits to hear it."""
    said = [go]
    if distributed.is_initialized():
        distributed.broadcast_object_list(said, src=0)
    return bool(said[0])


def leave() -> None:
    """Part from the other processes."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
