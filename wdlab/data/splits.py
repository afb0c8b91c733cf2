"""The three splits of a data set: what is in them, and how a batch is taken out of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from wdlab.data.augment import Augment, Drawn, to_device

NORMALIZED_ONCE = 2**28  # bytes of float32 up to which images are kept normalized; larger splits are kept as uint8


class Split(ABC):
    """Examples on one device. ``labels`` has a row for each, or is the text itself."""

    labels: Tensor

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def examples(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Inputs as a network reads them, and int64 labels, of some rows; nothing varied."""

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> Any:
        """How the examples are varied in an epoch, in the order in which they are visited; None if they are not."""

    @abstractmethod
    def varied(self, rows: Tensor, drawn: Any) -> tuple[Tensor, Tensor]:
        """As ``examples``, varied by what was drawn for them."""


class Images(Split):
    """Normalized float32 images (n, channels, height, width) and labels (n,).

    Args:
        pixels: uint8, (n, channels, height, width).
        labels: int64, (n,).
        mean, std: of pixels in [0, 1], per channel.
        device: where everything goes.
        augment: how training batches are varied.

    They are normalized once if they are few and nothing varies them, else batch by batch, with the same result.
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
        if augment is None and 4 * pixels.numel() <= NORMALIZED_ONCE:
            self._stored = self._normalize(pixels.to(device))
        else:
            self._stored = pixels.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def examples(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        inside = self._stored
        if self._border:
            inside = inside[:, :, self._border : -self._border, self._border : -self._border]
        return self._normalize(_take(inside, rows)), _take(self.labels, rows)

    def draw(self, generator: np.random.Generator) -> Drawn | None:
        if self._augment is None:
            return None
        height, width = (size - 2 * self._border for size in self._stored.shape[2:])
        return self._augment.draw(generator, len(self), (height, width))

    def varied(self, rows: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        pixels = self._augment(self._stored.index_select(0, rows), drawn)
        return self._augment.hide(self._normalize(pixels), drawn), self.labels.index_select(0, rows)

    def _normalize(self, images: Tensor) -> Tensor:
        if images.is_floating_point():
            return images
        return (
            images.to(torch.float32, memory_format=torch.contiguous_format).div_(255).sub_(self._mean).div_(self._std)
        )


class Shifts(NamedTuple):
    """How far the examples of a text begin behind where they usually do: int64 (n,)."""

    characters: Tensor

    def part(self, rows: slice) -> Self:
        """What was drawn for a slice of the examples."""
        return type(self)(self.characters[rows])

    def to(self, device: torch.device) -> Self:
        """On ``device``, without making the host wait."""
        return type(self)(to_device(self.characters, device))


class Text(Split):
    """A text cut into examples of ``context`` characters; the labels are the characters that follow, (n, context).

    Args:
        tokens: int64, (characters,).
        context: characters of an example.
        device: where everything goes.
        shift: whether the cuts of training batches are moved by a random number of characters.
    """

    def __init__(self, tokens: Tensor, context: int, device: torch.device, shift: bool = False) -> None:
        self.labels = tokens.to(device)
        self._context, self._shift = context, shift
        self._within = torch.arange(context, device=device)

    def __len__(self) -> int:
        return (len(self.labels) - 1) // self._context - (1 if self._shift else 0)

    def examples(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(rows, slice):
            rows = torch.arange(len(self), device=self.labels.device)[rows]
        return self._from(rows * self._context)

    def draw(self, generator: np.random.Generator) -> Shifts | None:
        if not self._shift:
            return None
        return Shifts(torch.from_numpy(generator.integers(0, self._context, len(self))))

    def varied(self, rows: Tensor, drawn: Shifts) -> tuple[Tensor, Tensor]:
        return self._from(rows * self._context + drawn.characters)

    def _from(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        places = starts[:, None] + self._within
        return self.labels[places], self.labels[places + 1]


def _take(values: Tensor, rows: slice | Tensor) -> Tensor:
    return values[rows] if isinstance(rows, slice) else values.index_select(0, rows)


@dataclass(frozen=True)
class Data:
    """The three splits of a data set and the sha256 of the bytes they were made from."""

    train: Split
    val: Split
    test: Split
    checksum: str
