"""Multi-layer perceptrons: plain, and factorized into Linear-ReLU-Linear blocks (P1)."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from wdlab.models.checks import check_image, check_int


class MLP(nn.Module):
    """A multi-layer perceptron: ``depth`` linear layers with a ReLU after each but the last.

    Maps (batch, *input_shape) to logits (batch, classes). Weights have torch's default initialization.

    With ``norm="batch"`` a batch norm comes between every hidden layer and its ReLU. The hidden layers then have no
    bias, which the batch norm would subtract, and their weights are scale-invariant: the output does not change if they
    are multiplied by c > 0.

    Args:
        input_shape: shape of one example, (channels, height, width). The network flattens it.
        classes: number of logits.
        width: units per hidden layer.
        depth: number of linear layers, at least 2.
        norm: the normalization after each hidden layer, ``batch``; None for none.

    Raises:
        ValueError: if the input is not an image, if ``width`` or ``depth`` is too small, or for an unknown ``norm``.
    """

    stackable = True  # runs with this network can be trained side by side, see ``wdlab.stacked``

    def __init__(
        self, input_shape: Sequence[int], classes: int, width: int, depth: int, norm: str | None = None
    ) -> None:
        super().__init__()
        if norm not in (None, "batch"):
            raise ValueError(f"norm={norm!r}: must be null or batch")
        self.layers = linear_stack(input_shape, classes, width, depth, lambda k: k < depth, norm == "batch")

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


class FactorizedMLP(nn.Module):
    """A multi-layer perceptron of Linear-ReLU-Linear pairs, with no ReLU between one pair and the next (P1).

    Two successive ReLUs have two linear layers between them: the second layer of a pair and the first layer of the next
    pair. Each weight matrix between ReLUs is therefore factorized into two. Shapes and initialization are the same as
    in :class:`MLP`.

    Args:
        input_shape: shape of one example, (channels, height, width). The network flattens it.
        classes: number of logits.
        width: units per hidden layer.
        depth: number of linear layers, even and at least 2.

    Raises:
        ValueError: if the input is not an image, if ``width`` or ``depth`` is too small, or if ``depth`` is odd.
    """

    stackable = True  # as in MLP

    def __init__(self, input_shape: Sequence[int], classes: int, width: int, depth: int) -> None:
        super().__init__()
        check_int("depth", depth, 2)
        if depth % 2:
            raise ValueError(f"depth={depth}: must be even, a factorized MLP is made of pairs of linear layers")
        self.layers = linear_stack(input_shape, classes, width, depth, relu_after=lambda k: k % 2 == 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


def linear_stack(
    input_shape: Sequence[int],
    classes: int,
    width: int,
    depth: int,
    relu_after: Callable[[int], bool],
    batch_norm: bool = False,
) -> nn.Sequential:
    """Return a flattening and linear layers 1 to ``depth``, with a ReLU after every layer k where ``relu_after(k)``.

    Args:
        input_shape: shape of one example, (channels, height, width).
        classes: number of outputs of the last layer.
        width: number of outputs of every other layer.
        depth: number of linear layers, at least 2.
        relu_after: function of the number of a layer, counted from 1; True if a ReLU follows the layer.
        batch_norm: True puts a batch norm after every layer but the last, in place of the layer's bias.

    Raises:
        ValueError: if the input is not an image, or if ``width`` or ``depth`` is too small.
    """
    check_image(input_shape)
    check_int("width", width, 1)
    check_int("depth", depth, 2)
    sizes = [math.prod(input_shape), *[width] * (depth - 1), classes]
    stack: list[nn.Module] = [nn.Flatten()]
    for k in range(1, depth + 1):
        normalized = batch_norm and k < depth
        stack.append(nn.Linear(sizes[k - 1], sizes[k], bias=not normalized))
        if normalized:
            stack.append(nn.BatchNorm1d(sizes[k]))
        if relu_after(k):
            stack.append(nn.ReLU())
    return nn.Sequential(*stack)
