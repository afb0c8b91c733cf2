"""The three splits of a data set: what is in them, and how a batch is taken out of them."""

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from wdlab.data import sources
from wdlab.data.augment import Augment, Drawn, to_device
from wdlab.data.description import check_batch_size, check_description, is_text
from wdlab.errors import ConfigError, DataError

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


def load(config: Mapping[str, Any], root: str | Path, device: torch.device) -> Data:
    """The data set a ``configs/dataset`` file describes.

    Args:
        config: ``name``, ``shape`` (channels, height, width; of a text the context), ``classes``, ``val_size`` (taken
            from the training set), ``train_size`` (training examples, of a text characters, that are kept; null for
            all), ``split_seed``; of images ``mean`` and ``std`` (of pixels in [0, 1], per channel), ``per_class``
            (training examples kept per class, null for all), ``label_noise`` (share of the training labels that are
            replaced by another class, drawn from ``split_seed``) and ``augment`` (see ``Augment``); of a text
            ``shift``.
        root: where the files are; not needed for ``digits``.
        device: where the tensors go.

    Raises:
        DataError: if the files are missing and cannot be downloaded, or do not hold what the config says.
        ConfigError: if a split asks for more than there is.
    """
    return _load_text(config, root, device) if is_text(config) else _load_images(config, root, device)


def check(config: Mapping[str, Any], root: str | Path, batch_size: int, ranks: int = 1) -> None:
    """Make sure a data set can be had, downloading it if need be, and that training batches can be drawn from it.

    They must be no larger than the training set, and be shared equally by ``ranks`` processes.

    Raises:
        DataError: if the files are missing and cannot be downloaded, in one line that says what to put where.
        ConfigError: if the split or the batch size does not fit the data.
    """
    check_description(config)
    if is_text(config):
        examples = len(load(config, root, torch.device("cpu")).train)
    else:
        examples = len(_split_rows(_images_as_described(config, root)[1], config)[0])
    check_batch_size(batch_size, examples, ranks)


def checksum(config: Mapping[str, Any], root: str | Path) -> str:
    """The sha256 of what a data set is before it is split: all images and labels, or the numbered characters.

    Raises:
        DataError: if it cannot be had or read.
    """
    read = sources.text if is_text(config) else sources.images
    return _checksum(read, str(config.get("source") or config["name"]), str(root))


@functools.lru_cache(maxsize=4)
def _checksum(read: Callable[[str, str], tuple[Any, ...]], source: str, root: str) -> str:
    digest = hashlib.sha256()
    for part in read(source, root):
        if isinstance(part, Tensor):
            digest.update(part.numpy().tobytes())
    return digest.hexdigest()


# -- images


def _load_images(config: Mapping[str, Any], root: str | Path, device: torch.device) -> Data:
    parts = _images_as_described(config, root)
    pixels, labels, test_pixels, test_labels = parts
    train, val = _split_rows(labels, config)
    mean, std = list(config["mean"]), list(config["std"])
    augment = Augment.of(config.get("augment"))
    return Data(
        train=Images(pixels[train], noisy(labels[train], config), mean, std, device, augment),
        val=Images(pixels[val], labels[val], mean, std, device),
        test=Images(test_pixels, test_labels, mean, std, device),
        checksum=checksum(config, root),
    )


def _images_as_described(config: Mapping[str, Any], root: str | Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source = str(config.get("source") or config["name"])
    parts = sources.images(source, str(root))
    expected, found = (tuple(config["shape"]), config["classes"]), (tuple(parts[0].shape[1:]), int(parts[1].max()) + 1)
    if found != expected:
        raise DataError(
            f"dataset={config['name']}: {source} under {root} holds images {found[0]} in {found[1]} classes, expected "
            f"{expected[0]} in {expected[1]}"
        )
    pixels, labels, test_pixels, test_labels = parts
    if test_pixels.shape[1:] != pixels.shape[1:]:
        raise DataError(
            f"dataset={config['name']}: {source} under {root} has test images of {tuple(test_pixels.shape[1:])}, "
            f"expected {expected[0]}"
        )
    for split, found_labels in (("training", labels), ("test", test_labels)):
        lowest, highest = int(found_labels.min()), int(found_labels.max())
        if lowest < 0 or highest >= config["classes"]:
            raise DataError(
                f"dataset={config['name']}: {source} under {root} has {split} labels from {lowest} to {highest}, "
                f"expected 0 to {config['classes'] - 1}"
            )
    return parts


def _split_rows(labels: Tensor, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Row numbers of the training and validation split, drawn once from ``split_seed``; smaller ones lie in larger."""
    val_size, per_class, train_size = config["val_size"], config["per_class"], config.get("train_size")
    if not 0 < val_size < len(labels):
        raise ConfigError(f"dataset.val_size={val_size}: must be between 1 and {len(labels) - 1}")
    order = torch.from_numpy(np.random.default_rng(config["split_seed"]).permutation(len(labels)))
    train, val = order[:-val_size], order[-val_size:]
    if train_size is not None and train_size > len(train):
        raise ConfigError(f"dataset.train_size={train_size}: must be null or between 1 and {len(train)}")
    if per_class is None:
        return train[:train_size], val
    places = [(labels[train] == c).nonzero().flatten() for c in range(config["classes"])]
    fewest = min(map(len, places))
    if not 1 <= per_class <= fewest:
        raise ConfigError(f"dataset.per_class={per_class}: must be null or between 1 and {fewest}")
    kept = torch.cat([of_class[:per_class] for of_class in places])
    return train[kept.sort().values], val  # not class by class: the first n of them are a fair sample


def noisy(labels: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Labels of which the share ``label_noise`` (rounded to whole examples) is replaced by another class at random."""
    share = config.get("label_noise")
    if not share:
        return labels
    generator = np.random.default_rng((config["split_seed"], 1))
    rows = torch.from_numpy(generator.permutation(len(labels))[: round(share * len(labels))])
    by = torch.from_numpy(generator.integers(1, config["classes"], len(rows)))
    return labels.index_copy(0, rows, (labels[rows] + by) % config["classes"])


# -- text


def _load_text(config: Mapping[str, Any], root: str | Path, device: torch.device) -> Data:
    """The last tenth of the text is the test set, the ``val_size`` characters before it are for validation."""
    tokens, vocabulary = sources.text(str(config.get("source") or config["name"]), str(root))
    if vocabulary != config["classes"]:
        raise DataError(
            f"dataset={config['name']}: the text under {root} has {vocabulary} different characters, expected "
            f"{config['classes']}"
        )
    context, val_size = config["shape"][0], config["val_size"]
    rest = len(tokens) - len(tokens) // 10
    least = 2 * context + 1  # characters of the smallest split that has an example however it is cut
    train_end = rest - val_size
    if least > len(tokens) - rest or 2 * least > rest:
        raise ConfigError(f"dataset.shape=[{context}]: must be shorter, the text has {len(tokens)} characters")
    if not least <= val_size <= rest - least:
        raise ConfigError(f"dataset.val_size={val_size}: must be between {least} and {rest - least} characters")
    train_size = config.get("train_size")
    if train_size is not None and not least <= train_size <= train_end:
        raise ConfigError(
            f"dataset.train_size={train_size}: must be null or between {least} and {train_end} characters"
        )
    parts = tokens[:train_end][:train_size], tokens[train_end:rest], tokens[rest:]
    train, val, test = (Text(part, context, device, bool(config.get("shift")) and part is parts[0]) for part in parts)
    return Data(train, val, test, checksum(config, root))
