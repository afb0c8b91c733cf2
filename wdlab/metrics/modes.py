"""The mode, training or evaluation, in which a network is looked at."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluation(model: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Evaluation mode within; every module's own mode is put back behind it.

    With ``batch_statistics`` batch norm normalizes by the batch it sees, as in training.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = batch_statistics and isinstance(module, nn.modules.batchnorm._BatchNorm)
        yield
    finally:
        for module, training in modes:
            module.training = training
