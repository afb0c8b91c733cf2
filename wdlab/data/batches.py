"""Batches of training examples, each batch a pure function of the seed and the step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wdlab.data.augment import to_device
from wdlab.data.description import check_batch_size
from wdlab.data.splits import Split


class Batches:
    """Training batches of one run.

    Epoch e visits the examples in a permutation drawn from (seed, e), in blocks of ``batch_size``. The last,
    incomplete block of an epoch is dropped, so every batch has ``batch_size`` examples. The random variations of the
    examples in epoch e are drawn from (seed, e) too.

    Args:
        split: the training examples.
        batch_size: examples per step, in all processes together.
        seed: seed of the order and of the variations.
        rank: number of this process, from 0 to ``ranks - 1``.
        ranks: number of processes. Each gets an equal share of every batch.

    Raises:
        ConfigError: if ``batch_size`` is larger than the split, or not a multiple of ``ranks``.
    """

    def __init__(self, split: Split, batch_size: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        check_batch_size(batch_size, len(split), ranks)
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.steps_per_epoch = len(split) // batch_size
        self._share = batch_size // ranks
        self._first = rank * self._share
        self._epoch = -1
        self._order: Tensor
        self._drawn: Any

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return this process's inputs and labels for update ``step + 1``.

        Steps may be requested in any order. Each change to another epoch costs a new permutation.

        Args:
            step: number of updates so far, >= 0.
        """
        epoch, block = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._start_epoch(epoch)
        start = block * self.batch_size + self._first
        here = slice(start, start + self._share)
        if self._drawn is None:
            return self.split.examples(self._order[here])
        return self.split.varied(self._order[here], self._drawn.of_rows(here))

    def _start_epoch(self, epoch: int) -> None:
        device = self.split.labels.device
        drawn = self.split.draw(np.random.default_rng((self.seed, epoch, 1)))
        self._order = to_device(_order(self.split, self.seed, epoch), device)
        self._drawn = None if drawn is None else drawn.to(device)
        self._epoch = epoch


class StackedBatches:
    """The batches of several runs that differ in their seeds, stacked along a first dimension.

    Each run gets the same examples as from ``Batches`` with its seed, without random variations.

    Args:
        split: the training examples, common to all runs.
        batch_size: examples per step of each run.
        seeds: the runs' seeds.

    Raises:
        ConfigError: if ``batch_size`` is larger than the split.
    """

    def __init__(self, split: Split, batch_size: int, seeds: Sequence[int]) -> None:
        check_batch_size(batch_size, len(split))
        self.split, self.batch_size, self.seeds = split, batch_size, list(seeds)
        self.steps_per_epoch = len(split) // batch_size
        self._epoch = -1
        self._orders: Tensor

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs (runs, batch, ...) and labels (runs, batch) for update ``step + 1``."""
        epoch, block = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            orders = {seed: _order(self.split, seed, epoch) for seed in set(self.seeds)}
            self._orders = to_device(torch.stack([orders[seed] for seed in self.seeds]), self.split.labels.device)
            self._epoch = epoch
        rows = self._orders[:, block * self.batch_size : (block + 1) * self.batch_size]
        inputs, labels = self.split.examples(rows.flatten())
        return inputs.unflatten(0, rows.shape), labels.unflatten(0, rows.shape)


def _order(split: Split, seed: int, epoch: int) -> Tensor:
    """Return the permutation, int64 (examples,), in which an epoch visits the examples."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(split)))
