"""Batch norm after one layer of several MLPs, with separate statistics for each run."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class StackedBatchNorm:
    """The batch norms at one place in several MLPs. Their running statistics become views of shared tensors.

    Sums over a batch are taken in one order for any number of runs, so that a run's numbers do not depend on it.

    Args:
        modules: the batch norm of each run, all of one size.
        weight: the scales, (runs, 1, units), whose ``grad`` is written by ``backward``.
        bias: the shifts, as ``weight``.
    """

    def __init__(self, modules: Sequence[nn.BatchNorm1d], weight: Tensor, bias: Tensor) -> None:
        self._weight, self._bias = weight, bias
        self._momentum, self._eps = modules[0].momentum, modules[0].eps
        self._mean, self._variance, self._count = (
            torch.stack([module.get_buffer(name) for module in modules])
            for name in ("running_mean", "running_var", "num_batches_tracked")
        )
        for run, module in enumerate(modules):
            module.running_mean, module.running_var = self._mean[run], self._variance[run]
            module.num_batches_tracked = self._count[run]

    def train(self, values: Tensor) -> Tensor:
        """Return values normalized by the statistics of each run's batch, and update the running statistics.

        Args:
            values: the outputs of the layer, (runs, batch, units), overwritten.
        """
        batch = values.shape[1]
        mean = values.mean(1, keepdim=True)
        variance = values.sub_(mean).square().mean(1, keepdim=True)
        self._mean.lerp_(mean.squeeze(1), self._momentum)
        self._variance.lerp_(variance.squeeze(1) * (batch / (batch - 1)), self._momentum)
        self._count += 1
        self._inverse = (variance + self._eps).rsqrt_()
        self._normalized = values.mul_(self._inverse)
        return torch.addcmul(self._bias, self._normalized, self._weight)

    def backward(self, slopes: Tensor) -> Tensor:
        """Return the gradient by the values of the last ``train``, and write the gradients of scales and shifts.

        Args:
            slopes: the gradient by the result of ``train``, (runs, batch, units).
        """
        torch.sum(slopes, 1, keepdim=True, out=self._bias.grad)
        torch.sum(slopes * self._normalized, 1, keepdim=True, out=self._weight.grad)
        means = self._bias.grad / slopes.shape[1], self._weight.grad / slopes.shape[1]
        return (slopes - means[0]).addcmul_(self._normalized, means[1], value=-1).mul_(self._weight * self._inverse)

    def evaluate(self, values: Tensor) -> Tensor:
        """Return values (runs, examples, units) normalized by each run's running statistics; they are overwritten."""
        scale = self._weight * (self._variance.unsqueeze(1) + self._eps).rsqrt()
        return values.sub_(self._mean.unsqueeze(1)).mul_(scale).add_(self._bias)
