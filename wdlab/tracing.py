"""Networks that are looked at without being changed. Used by ``homogeneous`` and ``evaluate``."""

import contextlib
from collections.abc import Iterator

from torch import fx, nn


def trace(model: nn.Module) -> fx.Graph:
    """The graph of a model's forward.

    Raises:
        Exception: what ``torch.fx`` raises where it cannot follow.
    """
    with left_as_it_was(model):
        return fx.symbolic_trace(model).graph


@contextlib.contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back what the model's forward keeps on it within, such as its activations.

    They would be graphs' symbols and tensors with a history, with which a model can be neither copied nor saved.
    """
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
