"""From a ``configs/dataset`` file to the three splits on a device."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wdlab.data import sources
from wdlab.data.augment import Augment
from wdlab.data.description import check_batch_size, check_description, is_text
from wdlab.data.splits import Data, Images, Text
from wdlab.errors import ConfigError, DataError


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
