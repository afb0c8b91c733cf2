"""Multi-layer perceptrons: plain, and factorized into Linear-ReLU-Linear blocks (P1)."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from wdlab.models.checks import check_image, check_int


class MLP(nn.Module):
    """``depth`` linear layers of ``width`` units with a ReLU after each but the last; torch's default init.

    Args:
        input_shape: of one example, (channels, height, width); flattened.
        classes: number of logits.
        width: units per hidden layer.
        depth: number of linear layers, at least 2.

    Maps (batch, *input_shape) to (batch, classes).
    """

    stackable = True  # runs of it can be trained side by side, see ``wdlab.stacked``

    def __init__(self, input_shape: Sequence[int], classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.layers = linear_stack(input_shape, classes, width, depth, relu_after=lambda k: k < depth)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


class FactorizedMLP(nn.Module):
    """``depth`` linear layers in pairs Linear-ReLU-Linear, with no ReLU between one pair and the next (P1).

    The pairs are blocks of one hidden layer each, so each weight matrix of a deeper view is factorized into two.
    Arguments as for :class:`MLP`; ``depth`` must be even.
    """

    stackable = True

    def __init__(self, input_shape: Sequence[int], classes: int, width: int, depth: int) -> None:
        super().__init__()
        check_int("depth", depth, 2)
        if depth % 2:
            raise ValueError(f"depth={depth}: must be even, a factorized MLP is made of pairs of linear layers")
        self.layers = linear_stack(input_shape, classes, width, depth, relu_after=lambda k: k % 2 == 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


def linear_stack(input_shape, classes, width, depth, relu_after) -> nn.Sequential:
    """Flatten, then linear layers 1..depth, with a ReLU after layer k where ``relu_after(k)``."""
    check_image(input_shape)
    check_int("width", width, 1)
    check_int("depth", depth, 2)
    sizes = [math.prod(input_shape), *[width] * (depth - 1), classes]
    stack: list[nn.Module] = [nn.Flatten()]
    for k in range(1, depth + 1):
        stack.append(nn.Linear(sizes[k - 1], sizes[k]))
        if relu_after(k):
            stack.append(nn.ReLU())
    return nn.Sequential(*stack)
