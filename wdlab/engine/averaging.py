"""The average of a network's weights over the updates of a run (``train.average_decay``).

The loop updates the average after every step, and the averaged network is evaluated in addition to the trained one.
``torch.optim.swa_utils.AveragedModel`` computes the same weights but is slower (measured on a CPU: 227 instead of 19
microseconds per update for a ResNet-8, 66 instead of 20 for an MLP of 3 x 400 units), copies every buffer in every
update, and fails if a buffer changes its size. torch's ``update_bn`` runs the whole network in training mode, dropout
included.
"""

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wdlab.data import Split
from wdlab.metrics.objective import Autocast
from wdlab.models.modes import evaluation

STATISTICS_EXAMPLES = 10_000  # the largest number of training examples that batch statistics are computed over
EXAMPLES_PER_PASS = 500  # examples per forward pass
BATCH_NORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # the buffers of a batch norm


class WeightAverage:
    """An exponential moving average of a network's weights: ``a <- decay a + (1 - decay) w`` after every update.

    If the learning rate does not fall to zero, the weights keep fluctuating, and the average is nearer to the center of
    these fluctuations (Polyak and Juditsky 1992; Izmailov et al. 2018, arXiv 1803.05407). Training does not use the
    average. Exact zeros are lost: a weight that was recently different from zero has a nonzero average.

    Args:
        model: the network that is trained, before its first update. Its initial weights are the initial average.
        decay: the factor on the average per update, in (0, 1); the average spans about ``1 / (1 - decay)`` updates.

    Attributes:
        network: a copy of the model with the averaged weights. Its buffers are set by ``refresh_batch_statistics``.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(model).requires_grad_(False)
        self._model = model
        pairs = list(zip(self.network.parameters(), model.parameters(), strict=True))
        self._weights, self._weights_of_model = _columns(p for p in pairs if p[0].is_floating_point())
        self._integers, self._integers_of_model = _columns(p for p in pairs if not p[0].is_floating_point())
        self._new_share = 1 - decay

    @torch.no_grad()
    def update(self) -> None:
        """Include the model's current weights in the average. Call it after each update of the weights."""
        torch._foreach_lerp_(self._weights, self._weights_of_model, self._new_share)
        for ours, theirs in zip(self._integers, self._integers_of_model, strict=True):  # integers are not averaged
            ours.copy_(theirs)

    @torch.no_grad()
    def refresh_batch_statistics(self, train: Split, autocast: Autocast = contextlib.nullcontext) -> nn.Module:
        """Set the buffers of the averaged network and return it, ready to be evaluated.

        The statistics of batch norms are recomputed over training examples without augmentation, since the model's
        statistics do not fit the averaged weights. All other buffers are copied from the model; so are the statistics
        of a batch norm that is in evaluation mode while the model trains. No random number is drawn.

        Args:
            train: the training set; its first 10,000 examples are used.
            autocast: returns the context in which each forward pass runs, for mixed precision.
        """
        paths = list(_norms_with_statistics(self._model))
        own = {f"{path}.{name}".lstrip(".") for path in paths for name in BATCH_NORM_BUFFERS}
        for name, buffer in self._model.named_buffers():
            if name not in own:
                self._copy_buffer(name, buffer)
        if paths:
            with contextlib.ExitStack() as stack:
                stack.enter_context(evaluation(self.network))
                for norm in map(self.network.get_submodule, paths):
                    norm.reset_running_stats()
                    norm.training = True
                    stack.enter_context(norm.register_forward_pre_hook(_mean_of_batches()))
                for batch in _batches(train):
                    with autocast():
                        self.network(batch)
        return self.network

    def _copy_buffer(self, name: str, buffer: Tensor) -> None:
        """Copy the model's ``buffer`` to the averaged network, even if its shape, dtype or device has changed."""
        path, _, last = name.rpartition(".")
        buffers = self.network.get_submodule(path)._buffers
        ours = buffers.get(last)
        if ours is not None and (ours.shape, ours.dtype, ours.device) == (buffer.shape, buffer.dtype, buffer.device):
            ours.copy_(buffer)
        else:
            buffers[last] = buffer.clone()

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights and the buffers, for a checkpoint."""
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the averaged weights and the buffers to those in a result of ``state_dict``."""
        self.network.load_state_dict(state)


def _mean_of_batches() -> Callable[[nn.Module, Any], None]:
    """Return a forward pre-hook that makes a batch norm's statistics the cumulative mean over the following batches.

    A momentum of None would compute the same mean, but torch then reads the number of batches from the device in every
    forward pass.
    """
    count = itertools.count(1)

    def before_forward(norm: nn.Module, _: Any) -> None:
        norm.momentum = 1 / next(count)

    return before_forward


def _norms_with_statistics(model: nn.Module) -> Iterator[str]:
    """Yield the path of each batch norm that updates its statistics while the model trains; a shared module once."""
    for path, module in model.named_modules():
        updated = module.training or not model.training
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None and updated:
            yield path


def _columns(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Return a list of the first members of the pairs and a list of their second members."""
    pairs = list(pairs)
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


def _batches(train: Split) -> Iterator[Tensor]:
    """Yield the inputs of the first ``STATISTICS_EXAMPLES`` examples in batches of ``EXAMPLES_PER_PASS``.

    An incomplete last batch is left out, unless it is the only batch.
    """
    for start in range(
        0, max(1, min(len(train), STATISTICS_EXAMPLES) // EXAMPLES_PER_PASS) * EXAMPLES_PER_PASS, EXAMPLES_PER_PASS
    ):
        yield train.examples(slice(start, min(start + EXAMPLES_PER_PASS, len(train))))[0]
