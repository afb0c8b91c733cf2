"""Random variations of images, applied to a whole batch at once on the device.

All random numbers of an epoch are drawn on the CPU, from a generator that the caller seeds, so they are equal on every
device. Crop, rotation and flip are done together by one gather, which copies a source pixel to each pixel of the
result. Values of pixels are therefore unchanged (nearest neighbour, no interpolation).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

PADDINGS = {"zero": "constant", "reflect": "reflect"}  # name in a config -> name in torch


class ImageVariations(NamedTuple):
    """The random numbers that vary n images. An optional field is None if its variation is switched off."""

    top: Tensor  # int64 (n,): first row of the crop in the padded image
    left: Tensor  # int64 (n,): first column of the crop
    mirrored: Tensor | None  # bool (n,): True for an image that is mirrored
    angle: Tensor | None  # float32 (n,): angle of rotation in radians, counter-clockwise on the screen
    hidden: Tensor | None = None  # int64 (n, 2): row and column of the top left pixel of the cutout's square

    def of_rows(self, rows: slice) -> Self:
        """Return the random numbers of the images in the slice ``rows``."""
        return type(self)(*(None if values is None else values[rows] for values in self))

    def to(self, device: torch.device) -> Self:
        """Return the same numbers on ``device``. The host does not wait for the transfer."""
        return type(self)(*(None if values is None else to_device(values, device) for values in self))


@dataclass(frozen=True)
class Augment:
    """Padding, then random rotation, crop, mirroring and cutout of images, in this order.

    All steps but the cutout act on pixels before normalization, so padding with zeros is black.

    Args:
        crop: width in pixels of the padding on every side. A window of the original size is then cut out at a random
            position. 0 switches padding and crop off.
        padding: ``zero`` (black) or ``reflect`` (the image mirrored at its border).
        flip: True mirrors each image left to right with probability 1/2.
        rotation: largest angle in degrees. Each image is turned about its centre by an angle drawn uniformly from
            [-rotation, rotation], by nearest neighbour. Pixels whose source lies outside the image become black. 0
            switches the rotation off.
        cutout: side in pixels of a square that is hidden (Cutout, arXiv 1708.04552). The middle of the square is a
            random pixel of the image, so a part of the square may lie outside. 0 switches the cutout off.
    """

    crop: int = 0
    padding: str = "zero"
    flip: bool = False
    rotation: float = 0.0
    cutout: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> Self | None:
        """Return the augmentation with the values ``config`` of ``dataset.augment``; None if it changes no image.

        A field is at its default if its key is missing or null.
        """
        augment = cls(**{key: value for key, value in (config or {}).items() if value is not None})
        return None if augment == cls(padding=augment.padding) else augment

    def pad(self, images: Tensor) -> Tensor:
        """Return images (n, c, h, w) padded by ``crop`` pixels on every side, of the same type."""
        if not self.crop:
            return images
        mode = PADDINGS[self.padding]
        # In float32, since torch cannot reflect uint8. In chunks, since a whole split in float32 takes much memory.
        chunks = (nn.functional.pad(chunk.float(), (self.crop,) * 4, mode=mode) for chunk in images.split(4096))
        return torch.cat([chunk.to(images.dtype) for chunk in chunks])

    def draw(self, generator: np.random.Generator, examples: int, size: tuple[int, int]) -> ImageVariations:
        """Draw the random numbers for an epoch.

        Args:
            generator: source of all random numbers, seeded by the caller.
            examples: number of images in the epoch.
            size: height and width of an image without padding.

        Returns:
            The random numbers of all images, on the CPU.
        """
        corner = generator.integers(0, 2 * self.crop + 1, (2, examples))
        mirrored = generator.random(examples) < 0.5 if self.flip else None
        limit = np.deg2rad(self.rotation)
        angle = generator.uniform(-limit, limit, examples).astype(np.float32) if self.rotation else None
        hidden = generator.integers(0, size, (examples, 2)) - self.cutout // 2 if self.cutout else None
        top, left = torch.from_numpy(corner)
        return ImageVariations(
            top, left, *(None if v is None else torch.from_numpy(v) for v in (mirrored, angle, hidden))
        )

    def __call__(self, padded: Tensor, drawn: ImageVariations) -> Tensor:
        """Rotate, crop and mirror padded images.

        Args:
            padded: images (n, c, h + 2 crop, w + 2 crop), from ``pad``.
            drawn: the random numbers for these n images, on their device.

        Returns:
            Images (n, c, h, w) of the same type.
        """
        count, _, height, width = padded.shape
        rows = drawn.top[:, None] + torch.arange(height - 2 * self.crop, device=padded.device)
        columns = torch.arange(width - 2 * self.crop, device=padded.device).expand(count, -1)
        if drawn.mirrored is not None:
            columns = torch.where(drawn.mirrored[:, None], columns.flip(1), columns)
        columns = columns + drawn.left[:, None]
        if drawn.angle is None:
            index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
            return _take(padded, index).unflatten(2, (rows.shape[1], -1))
        index, inside = _rotated(rows[:, :, None], columns[:, None, :], drawn.angle[:, None, None], height, width)
        return (_take(padded, index.flatten(1)) * inside.flatten(1)[:, None]).unflatten(2, (rows.shape[1], -1))

    def hide(self, images: Tensor, drawn: ImageVariations) -> Tensor:
        """Set the pixels in the cutout's squares to zero, the mean of normalized pixels.

        Args:
            images: normalized images (n, c, h, w), changed in place.
            drawn: the random numbers for these n images, on their device.

        Returns:
            ``images``.
        """
        if drawn.hidden is None:
            return images
        in_square = []  # bool (n, h) and (n, w)
        for dim in (2, 3):
            offset = torch.arange(images.shape[dim], device=images.device) - drawn.hidden[:, dim - 2, None]
            in_square.append((offset >= 0) & (offset < self.cutout))
        rows, columns = in_square
        return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def _take(images: Tensor, index: Tensor) -> Tensor:
    """Return pixels (n, c, k) of images (n, c, h, w); ``index`` (n, k) numbers the h * w pixels row by row."""
    return images.flatten(2).gather(2, index[:, None].expand(-1, images.shape[1], -1))


def _rotated(rows: Tensor, columns: Tensor, angle: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the source of each pixel of a rotated image: the pixel of the original image that is copied there.

    Args:
        rows: row of each pixel in the rotated image, broadcast against ``columns`` and ``angle``.
        columns: column of each pixel in the rotated image.
        angle: angle of rotation in radians, counter-clockwise on the screen.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Returns:
        The number of each source among the height * width pixels, counted row by row, and a mask that is True for
        sources inside the image. The number of a source outside is 0.
    """
    y, x = rows - (height - 1) / 2, columns - (width - 1) / 2
    cos, sin = angle.cos(), angle.sin()
    from_row = (cos * y + sin * x + (height - 1) / 2).round()
    from_column = (cos * x - sin * y + (width - 1) / 2).round()
    inside = (from_row >= 0) & (from_row < height) & (from_column >= 0) & (from_column < width)
    return (from_row * width + from_column).where(inside, 0).long(), inside


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Move a CPU tensor to ``device``: to a GPU through pinned memory, so that the host does not wait."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)
