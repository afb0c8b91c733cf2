"""The average of a network's weights along a run (``train.average_decay``). Kept by the loop, evaluated beside the
network that is trained."""

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

EXAMPLES = 10_000  # of the training set, that batch statistics are taken over, at most
CHUNK = 500  # of them in a forward pass
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # the buffers of a batch norm


class Average:
    """A network whose weights are an exponential moving average of another's: ``a <- decay a + (1 - decay) w``.

    With a learning rate that does not fall to zero the average is nearer to the middle of what the weights wander about
    in (Polyak and Juditsky 1992; Izmailov et al. 2018, arXiv 1803.05407). The network that is trained never sees it.
    Exact zeros are lost: a weight that was not zero of late is not zero on average.

    Args:
        model: at the beginning of its run, where the average begins too.
        decay: per update, in (0, 1); the average is over about ``1 / (1 - decay)`` updates.

    Attributes:
        network: the one with the averaged weights. Its buffers are set by ``refresh_batch_statistics``: batch norm's
            are its own, the others the model's, as in ``torch.optim.swa_utils.AveragedModel``.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(model).requires_grad_(False)
        self._model = model
        pairs = list(zip(self.network.parameters(), model.parameters(), strict=True))
        self._weights, self._of_model = _columns(pair for pair in pairs if pair[0].is_floating_point())
        self._whole, self._of_model_whole = _columns(pair for pair in pairs if not pair[0].is_floating_point())
        self._share = 1 - decay

    @torch.no_grad()
    def update(self) -> None:
        """Behind an update of the model's weights."""
        torch._foreach_lerp_(self._weights, self._of_model, self._share)
        for ours, theirs in zip(self._whole, self._of_model_whole, strict=True):  # of which there is no average
            ours.copy_(theirs)

    @torch.no_grad()
    def refresh_batch_statistics(self, train: Split, autocast: Autocast = contextlib.nullcontext) -> nn.Module:
        """The network, ready to be evaluated: batch norm's statistics taken anew, over training examples as they are.

        Those of the model do not fit averaged weights. All other buffers are taken over from the model, and the
        statistics of a batch norm that is in evaluation mode while the model trains. Nothing is drawn at random.
        """
        paths = list(_norms_with_statistics(self._model))
        own = {f"{path}.{name}".lstrip(".") for path in paths for name in STATISTICS}
        for name, buffer in self._model.named_buffers():
            if name not in own:
                self._take_over(name, buffer)
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

    def _take_over(self, name: str, buffer: Tensor) -> None:
        path, _, last = name.rpartition(".")
        buffers = self.network.get_submodule(path)._buffers
        ours = buffers.get(last)
        if ours is not None and (ours.shape, ours.dtype, ours.device) == (buffer.shape, buffer.dtype, buffer.device):
            ours.copy_(buffer)
        else:
            buffers[last] = buffer.clone()

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights, for a checkpoint."""
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.network.load_state_dict(state)


def _mean_of_batches() -> Callable[[nn.Module, Any], None]:
    """A hook that makes a batch norm's statistics the mean over the batches from now on.

    So does a momentum of None, for which torch reads the number of batches back from the device in every forward pass.
    """
    count = itertools.count(1)

    def before_forward(norm: nn.Module, _: Any) -> None:
        norm.momentum = 1 / next(count)

    return before_forward


def _norms_with_statistics(model: nn.Module) -> Iterator[str]:
    """The paths of the batch norms that take statistics as the model trains, each once."""
    for path, module in model.named_modules():
        moves = module.training or not model.training
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None and moves:
            yield path


def _columns(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    pairs = list(pairs)
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


def _batches(train: Split) -> Iterator[Tensor]:
    """Inputs of whole chunks, or of all examples if they are fewer than one chunk has."""
    for start in range(0, max(1, min(len(train), EXAMPLES) // CHUNK) * CHUNK, CHUNK):
        yield train.examples(slice(start, min(start + CHUNK, len(train))))[0]
