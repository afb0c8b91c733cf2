"""Random variations of images, a whole batch at a time and on the device.

What is random is drawn on the CPU, once for an epoch, from a generator that the caller seeds: the same on every device.
Which pixel goes where is then one index per pixel, so crop, rotation and flip cost one gather together, and pixels stay
what they are (nearest neighbour, no interpolation).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

PADDINGS = {"zero": "constant", "reflect": "reflect"}  # and torch's names for them


class Drawn(NamedTuple):
    """What was drawn for some examples; every tensor has a row for each. None where there is nothing to draw."""

    top: Tensor  # int64 (n,): first row of the crop in the padded image
    left: Tensor  # int64 (n,): first column
    mirrored: Tensor | None  # bool (n,)
    angle: Tensor | None  # float32 (n,), radians, counter-clockwise as seen
    hidden: Tensor | None = None  # int64 (n, 2): row and column of the first pixel of the square that is cut out

    def part(self, rows: slice) -> Self:
        """What was drawn for a slice of the examples."""
        return type(self)(*(None if values is None else values[rows] for values in self))

    def to(self, device: torch.device) -> Self:
        """On ``device``, without making the host wait."""
        return type(self)(*(None if values is None else to_device(values, device) for values in self))


@dataclass(frozen=True)
class Augment:
    """Pad, rotate, crop, mirror, cut out, in this order, with the padding as it is before normalization.

    Args:
        crop: pixels of padding on every side; a window of the image's size is then cut out anywhere. 0: no crop.
        padding: ``zero`` (black) or ``reflect`` (the image mirrored at its border).
        flip: mirror left and right with probability 1/2.
        rotation: turn about the centre by an angle uniform in +- so many degrees, nearest neighbour; black where
            nothing is. 0: no rotation.
        cutout: side of a square that is hidden, in pixels; its middle is anywhere in the image, so that a part of it
            may be outside (Cutout, arXiv 1708.04552). 0: none.
    """

    crop: int = 0
    padding: str = "zero"
    flip: bool = False
    rotation: float = 0.0
    cutout: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any] | None) -> Self | None:
        """From ``dataset.augment``; None if it varies nothing."""
        augment = cls(**{key: value for key, value in (config or {}).items() if value is not None})
        return None if augment == cls(padding=augment.padding) else augment

    def pad(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) with ``crop`` more pixels on every side."""
        if not self.crop:
            return images
        mode = PADDINGS[self.padding]
        parts = (nn.functional.pad(part.float(), (self.crop,) * 4, mode=mode) for part in images.split(4096))
        return torch.cat([part.to(images.dtype) for part in parts])  # reflection is not there for uint8

    def draw(self, generator: np.random.Generator, examples: int, size: tuple[int, int]) -> Drawn:
        """What varies ``examples`` images of (height, width) ``size``, on the CPU."""
        corner = generator.integers(0, 2 * self.crop + 1, (2, examples))
        mirrored = generator.random(examples) < 0.5 if self.flip else None
        limit = np.deg2rad(self.rotation)
        angle = generator.uniform(-limit, limit, examples).astype(np.float32) if self.rotation else None
        hidden = generator.integers(0, size, (examples, 2)) - self.cutout // 2 if self.cutout else None
        top, left = torch.from_numpy(corner)
        return Drawn(top, left, *(None if v is None else torch.from_numpy(v) for v in (mirrored, angle, hidden)))

    def __call__(self, padded: Tensor, drawn: Drawn) -> Tensor:
        """The variations ``drawn`` of padded images (n, c, h + 2 crop, w + 2 crop): (n, c, h, w), of the same type."""
        count, _, height, width = padded.shape
        rows = drawn.top[:, None] + torch.arange(height - 2 * self.crop, device=padded.device)
        columns = torch.arange(width - 2 * self.crop, device=padded.device).expand(count, -1)
        if drawn.mirrored is not None:
            columns = torch.where(drawn.mirrored[:, None], columns.flip(1), columns)
        columns = columns + drawn.left[:, None]
        if drawn.angle is None:
            index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
            return _take(padded, index).unflatten(2, (rows.shape[1], -1))
        index, inside = _turned(rows[:, :, None], columns[:, None, :], drawn.angle[:, None, None], height, width)
        return (_take(padded, index.flatten(1)) * inside.flatten(1)[:, None]).unflatten(2, (rows.shape[1], -1))

    def hide(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Normalized images (n, c, h, w), zero (the mean of the data set) in place where ``drawn`` says so."""
        if drawn.hidden is None:
            return images
        inside = []
        for dim in (2, 3):
            behind = torch.arange(images.shape[dim], device=images.device) - drawn.hidden[:, dim - 2, None]
            inside.append((behind >= 0) & (behind < self.cutout))
        rows, columns = inside
        return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def _take(images: Tensor, index: Tensor) -> Tensor:
    """Pixels (n, c, k) of images (n, c, h, w) at the places ``index`` (n, k) in h * w."""
    return images.flatten(2).gather(2, index[:, None].expand(-1, images.shape[1], -1))


def _turned(rows: Tensor, columns: Tensor, angle: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where pixel (row, column) of the turned image comes from, as an index in h * w; and whether it is inside."""
    y, x = rows - (height - 1) / 2, columns - (width - 1) / 2
    cos, sin = angle.cos(), angle.sin()
    from_row = (cos * y + sin * x + (height - 1) / 2).round()
    from_column = (cos * x - sin * y + (width - 1) / 2).round()
    inside = (from_row >= 0) & (from_row < height) & (from_column >= 0) & (from_column < width)
    return (from_row * width + from_column).where(inside, 0).long(), inside


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on ``device``; to a GPU through pinned memory, so that the host does not wait for it."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)
