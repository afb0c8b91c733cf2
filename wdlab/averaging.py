"""The average of a network's weights along a run (``train.average_decay``). Kept by the loop, evaluated beside the
network that is trained."""

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wdlab.data import Split
from wdlab.metrics.modes import evaluation
from wdlab.metrics.objective import Autocast

EXAMPLES = 10_000  # of the training set, that batch statistics are taken over, at most
CHUNK = 500  # of them in a forward pass


class Average:
    """A network whose weights are an exponential moving average of another's: ``a <- decay a + (1 - decay) w``.

    With a learning rate that does not fall to zero the average is nearer to the middle of what the weights wander about
    in (Polyak and Juditsky 1992; Izmailov et al. 2018, arXiv 1803.05407). The network that is trained never sees it.
    Exact zeros are lost: a weight that was not zero of late is not zero on average.

    Args:
        model: at the beginning of its run, where the average begins too.
        decay: per update, in (0, 1); the average is over about ``1 / (1 - decay)`` updates.

    Attributes:
        network: the one with the averaged weights. Its batch statistics are those of ``settle``.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(model).requires_grad_(False)
        self._weights, self._of_model = list(self.network.parameters()), list(model.parameters())
        self._norms = [m for m in self.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._share = 1 - decay

    @torch.no_grad()
    def update(self) -> None:
        """Behind an update of the model's weights."""
        torch._foreach_lerp_(self._weights, self._of_model, self._share)

    @torch.no_grad()
    def settle(self, train: Split, autocast: Autocast = contextlib.nullcontext) -> nn.Module:
        """The network, ready to be evaluated: batch norm's statistics taken anew, over training examples as they are.

        Those of the model do not fit averaged weights. Nothing is drawn at random.
        """
        with contextlib.ExitStack() as stack:
            for norm in self._norms:
                norm.reset_running_stats()
                stack.enter_context(norm.register_forward_pre_hook(_mean_of_batches()))
            if self._norms:
                stack.enter_context(evaluation(self.network, batch_statistics=True))
                for batch in _batches(train):
                    with autocast():
                        self.network(batch)
        return self.network

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


def _batches(train: Split) -> Iterator[Tensor]:
    """Inputs of whole chunks, or of all examples if they are fewer than one chunk has."""
    for start in range(0, max(1, min(len(train), EXAMPLES) // CHUNK) * CHUNK, CHUNK):
        yield train.examples(slice(start, min(start + CHUNK, len(train))))[0]
