"""The splits of a data set: their examples and the random variations of the examples."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from wdlab.data.augment import Augment, ImageVariations, to_device

MAX_NORMALIZED_BYTES = 2**28  # largest split that is stored as normalized float32, else as uint8


class Split(ABC):
    """Examples on one device. ``labels`` are int64: the class of each image, or all tokens of a text."""

    labels: Tensor

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def examples(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's inputs and the int64 labels of the examples ``rows``, without random variations."""

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> Any:
        """Draw the random variations of an epoch.

        Returns:
            A named tuple of tensors on the CPU, with the methods ``of_rows(slice)`` and ``to(device)``. Row k belongs
            to the example that the epoch visits as its k-th. None if the split's examples are never varied.
        """

    @abstractmethod
    def varied(self, rows: Tensor, drawn: Any) -> tuple[Tensor, Tensor]:
        """Return the network's inputs and the int64 labels of some examples, with random variations.

        Args:
            rows: int64 row numbers of the examples in the split.
            drawn: the part of ``draw``'s result that belongs to these examples, on their device.
        """


class Images(Split):
    """A split of images: normalized float32 (n, channels, height, width) with labels (n,).

    Without an augmentation, a split of at most ``MAX_NORMALIZED_BYTES`` is normalized once. Any other split is
    stored as uint8 and normalized batch by batch, with the same result.

    Args:
        pixels: uint8 (n, channels, height, width).
        labels: int64 (n,).
        mean: mean of pixels in [0, 1], per channel.
        std: standard deviation of pixels in [0, 1], per channel.
        device: device of all tensors.
        augment: random variations of training batches; None for no variations.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        mean: list[float],
        std: list[float],
        device: torch.device,
        augment: Augment | None = None,
    ) -> None:
        self.labels = labels.to(device)
        self._augment = augment
        self._border = augment.crop if augment else 0
        self._mean, self._std = (torch.tensor(values, device=device).reshape(1, -1, 1, 1) for values in (mean, std))
        pixels = augment.pad(pixels) if augment else pixels
        if augment is None and 4 * pixels.numel() <= MAX_NORMALIZED_BYTES:
            self._stored = self._normalize(pixels.to(device))
        else:
            self._stored = pixels.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def examples(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        unpadded = self._stored
        if self._border:
            unpadded = unpadded[:, :, self._border : -self._border, self._border : -self._border]
        return self._normalize(_take(unpadded, rows)), _take(self.labels, rows)

    def draw(self, generator: np.random.Generator) -> ImageVariations | None:
        if self._augment is None:
            return None
        height, width = (size - 2 * self._border for size in self._stored.shape[2:])
        return self._augment.draw(generator, len(self), (height, width))

    def varied(self, rows: Tensor, drawn: ImageVariations) -> tuple[Tensor, Tensor]:
        pixels = self._augment(self._stored.index_select(0, rows), drawn)
        return self._augment.hide(self._normalize(pixels), drawn), self.labels.index_select(0, rows)

    def _normalize(self, images: Tensor) -> Tensor:
        if images.is_floating_point():
            return images
        return (
            images.to(torch.float32, memory_format=torch.contiguous_format).div_(255).sub_(self._mean).div_(self._std)
        )


class TextShifts(NamedTuple):
    """The random variations of n examples of a text: the number of characters by which each begins later than usual."""

    characters: Tensor  # int64 (n,)

    def of_rows(self, rows: slice) -> Self:
        """Return the shifts of the examples in the slice ``rows``."""
        return type(self)(self.characters[rows])

    def to(self, device: torch.device) -> Self:
        """Return the same shifts on ``device``. The host does not wait for the transfer."""
        return type(self)(to_device(self.characters, device))


class Text(Split):
    """A text cut into n examples of ``context`` characters: tokens (n, context), each labelled with the next token.

    Args:
        tokens: int64 (characters,), the whole text of the split.
        context: number of characters of an example.
        device: device of all tensors.
        shift: True lets each example of a training batch begin later, by a random number of characters below
            ``context``.
    """

    def __init__(self, tokens: Tensor, context: int, device: torch.device, shift: bool = False) -> None:
        self.labels = tokens.to(device)
        self._context, self._shift = context, shift
        self._offsets = torch.arange(context, device=device)

    def __len__(self) -> int:
        return (len(self.labels) - 1) // self._context - (1 if self._shift else 0)

    def examples(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(rows, slice):
            rows = torch.arange(len(self), device=self.labels.device)[rows]
        return self._examples_from(rows * self._context)

    def draw(self, generator: np.random.Generator) -> TextShifts | None:
        if not self._shift:
            return None
        return TextShifts(torch.from_numpy(generator.integers(0, self._context, len(self))))

    def varied(self, rows: Tensor, drawn: TextShifts) -> tuple[Tensor, Tensor]:
        return self._examples_from(rows * self._context + drawn.characters)

    def _examples_from(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        positions = starts[:, None] + self._offsets
        return self.labels[positions], self.labels[positions + 1]


def _take(values: Tensor, rows: slice | Tensor) -> Tensor:
    return values[rows] if isinstance(rows, slice) else values.index_select(0, rows)


@dataclass(frozen=True)
class Data:
    """The three splits of a data set, and the SHA-256 of the data before splitting (see ``load.checksum``)."""

    train: Split
    val: Split
    test: Split
    checksum: str
