"""Evaluation mode for the time of a measurement."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluation(model: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Put every module into evaluation mode inside the context; on leaving, restore each module's earlier mode.

    Modes are restored module by module, since a part of the model may be frozen in evaluation mode.

    Args:
        model: any module.
        batch_statistics: True lets batch norms normalize by the batch, as in training. A batch norm in evaluation mode
            inside a model in training mode is frozen, and stays in evaluation mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    model_was_training = model.training
    try:
        for module, training in modes:
            is_unfrozen_norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and (
                training or not model_was_training
            )
            module.training = batch_statistics and is_unfrozen_norm
        yield
    finally:
        for module, training in modes:
            module.training = training
