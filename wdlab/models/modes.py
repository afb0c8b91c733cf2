"""The mode, training or evaluation, in which a network is looked at."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluation(model: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Evaluation mode within; every module's own mode is put back after it.

    With ``batch_statistics`` batch norm normalizes by the batch it sees, as in training. One that is in evaluation mode
    while its model trains is frozen, and does not.
    """
    modes = [(module, module.training) for module in model.modules()]
    trains = model.training
    try:
        for module, training in modes:
            norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and (training or not trains)
            module.training = batch_statistics and norm
        yield
    finally:
        for module, training in modes:
            module.training = training
