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
class Group:
    """The processes that share a run, as seen by one of them.

    Attributes:
        rank: the number of this process, from 0.
        size: the number of processes.
        local_rank: the number of this process among those on its machine.
    """

    rank: int
    size: int
    local_rank: int

    @property
    def is_leader(self) -> bool:
        """True if this process writes the records."""
        return self.rank == 0

    def average_gradients(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return ``model`` wrapped so that every backward pass averages the gradients over the processes."""
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def any_true(self, flag: bool) -> bool:
        """Return True if ``flag`` is true in any process. Uses the processors only, so no process waits for its GPU."""
        if self.size == 1:
            return flag
        votes = torch.tensor(int(flag))
        distributed.all_reduce(votes, distributed.ReduceOp.MAX, group=_channel)
        return bool(votes)


ALONE = Group(rank=0, size=1, local_rank=0)


_channel: distributed.ProcessGroup | None = None  # gloo, for flags in the main memory; set by `join`


def group() -> Group:
    """Return the processes of this run, read from torchrun's environment variables."""
    rank, size, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    return Group(rank, size, local_rank) if size > 1 else ALONE


def join(device: torch.device) -> Group:
    """Connect to the other processes of the run, unless that is done already, and return the group."""
    here = group()
    if here.size > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(here.local_rank)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        global _channel
        _channel = distributed.new_group(backend="gloo")
    return here


def broadcast_go(go: bool | None = None) -> bool:
    """Return the leader's decision whether to train.

    Args:
        go: the decision, given by the leader. The other processes leave it out and wait for the leader's call.
    """
    decision = [go]
    if distributed.is_initialized():
        distributed.broadcast_object_list(decision, src=0)
    return bool(decision[0])


def leave() -> None:
    """Disconnect from the other processes."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
