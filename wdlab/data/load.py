"""The three splits on a device, made from the values of a ``configs/dataset`` file."""

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
    """Load the data set that a ``configs/dataset`` file describes.

    Keys of every data set:

    * ``name``, and ``source``, the name of its files where that is another one;
    * ``shape``: (channels, height, width) of an image, or (context,) of a text;
    * ``classes``: number of classes, or of different characters;
    * ``val_size``: examples (or characters) taken from the training set for validation;
    * ``train_size``: training examples (or characters) kept, null for all;
    * ``split_seed``: seed of the split.

    Keys of images:

    * ``mean`` and ``std``: of pixels in [0, 1], per channel;
    * ``per_class``: training examples kept per class, null for all;
    * ``label_noise``: share of the training labels that are replaced by another class, drawn from ``split_seed``;
    * ``augment``: see ``Augment``.

    Key of a text: ``shift``, see ``Text``.

    Args:
        config: the values of the file.
        root: folder of the data sets' files. ``digits`` needs none.
        device: device of all tensors of the splits.

    Raises:
        DataError: if the files are missing and cannot be downloaded, or if their contents contradict the config.
        ConfigError: if a split is to be larger than the data allow.
    """
    return _load_text(config, root, device) if is_text(config) else _load_images(config, root, device)


def check(config: Mapping[str, Any], root: str | Path, batch_size: int, ranks: int = 1) -> None:
    """Check a data set and the batch size. The data set is downloaded if its files are missing.

    Args:
        config: the values of a ``configs/dataset`` file.
        root: folder of the data sets' files.
        batch_size: at most the number of training examples, and a multiple of ``ranks``.
        ranks: number of processes that share a batch.

    Raises:
        DataError: if the files are missing and cannot be downloaded. The message is one line that names the missing
            files and the folder to put them in.
        ConfigError: if the config, the sizes of its splits or the batch size do not fit the data.
    """
    check_description(config)
    if is_text(config):
        examples = len(load(config, root, torch.device("cpu")).train)
    else:
        examples = len(_split_rows(_images_as_described(config, root)[1], config)[0])
    check_batch_size(batch_size, examples, ranks)


def checksum(config: Mapping[str, Any], root: str | Path) -> str:
    """Return the sha256 of a data set before it is split: of all images and labels, or of a text's tokens.

    Raises:
        DataError: if the files are missing and cannot be downloaded, or cannot be read.
    """
    read = sources.text if is_text(config) else sources.images
    return _checksum(read, str(config.get("source") or config["name"]), str(root))


@functools.lru_cache(maxsize=4)
def _checksum(read: Callable[[str, str], tuple[Any, ...]], source: str, root: str) -> str:
    digest = hashlib.sha256()
    for value in read(source, root):
        if isinstance(value, Tensor):
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()


# -- images


def _load_images(config: Mapping[str, Any], root: str | Path, device: torch.device) -> Data:
    pixels, labels, test_pixels, test_labels = _images_as_described(config, root)
    train, val = _split_rows(labels, config)
    mean, std = list(config["mean"]), list(config["std"])
    augment = Augment.from_config(config.get("augment"))
    return Data(
        train=Images(pixels[train], with_label_noise(labels[train], config), mean, std, device, augment),
        val=Images(pixels[val], labels[val], mean, std, device),
        test=Images(test_pixels, test_labels, mean, std, device),
        checksum=checksum(config, root),
    )


def _images_as_described(config: Mapping[str, Any], root: str | Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the training pixels and labels and the test pixels and labels, as ``sources.images`` does.

    Raises:
        DataError: if shapes or labels contradict the config.
    """
    source = str(config.get("source") or config["name"])
    pixels, labels, test_pixels, test_labels = sources.images(source, str(root))
    expected, found = (tuple(config["shape"]), config["classes"]), (tuple(pixels.shape[1:]), int(labels.max()) + 1)
    if found != expected:
        raise DataError(
            f"dataset={config['name']}: {source} under {root} holds images {found[0]} in {found[1]} classes, expected "
            f"{expected[0]} in {expected[1]}"
        )
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
    return pixels, labels, test_pixels, test_labels


def _split_rows(labels: Tensor, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the row numbers of the training and of the validation split, drawn once from ``split_seed``.

    A smaller training split is a subset of a larger one. The validation split is the same for all sizes of the former.

    Raises:
        ConfigError: if a split is to be larger than the data allow.
    """
    val_size, per_class, train_size = config["val_size"], config["per_class"], config.get("train_size")
    if not 0 < val_size < len(labels):
        raise ConfigError(f"dataset.val_size={val_size}: must be between 1 and {len(labels) - 1}")
    order = torch.from_numpy(np.random.default_rng(config["split_seed"]).permutation(len(labels)))
    train, val = order[:-val_size], order[-val_size:]
    if train_size is not None and train_size > len(train):
        raise ConfigError(f"dataset.train_size={train_size}: must be null or between 1 and {len(train)}")
    if per_class is None:
        return train[:train_size], val
    positions = [(labels[train] == c).nonzero().flatten() for c in range(config["classes"])]
    fewest = min(map(len, positions))
    if not 1 <= per_class <= fewest:
        raise ConfigError(f"dataset.per_class={per_class}: must be null or between 1 and {fewest}")
    kept = torch.cat([of_class[:per_class] for of_class in positions])
    return train[kept.sort().values], val  # sorted, since class by class the first n examples would be of few classes


def with_label_noise(labels: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Return a copy of the labels in which the share ``label_noise`` is replaced by another class at random.

    The share is rounded to whole examples. Without noise ``labels`` are returned, not a copy.
    """
    share = config.get("label_noise")
    if not share:
        return labels
    generator = np.random.default_rng((config["split_seed"], 1))
    rows = torch.from_numpy(generator.permutation(len(labels))[: round(share * len(labels))])
    shift = torch.from_numpy(generator.integers(1, config["classes"], len(rows)))
    return labels.index_copy(0, rows, (labels[rows] + shift) % config["classes"])


# -- text


def _load_text(config: Mapping[str, Any], root: str | Path, device: torch.device) -> Data:
    """Cut a text into splits: the last tenth is the test set, the ``val_size`` characters before it the validation set.

    Raises:
        DataError: if the number of different characters is not ``classes``.
        ConfigError: if a split would be too short for one example of ``shape`` characters, or longer than the text.
    """
    tokens, vocabulary = sources.text(str(config.get("source") or config["name"]), str(root))
    if vocabulary != config["classes"]:
        raise DataError(
            f"dataset={config['name']}: the text under {root} has {vocabulary} different characters, expected "
            f"{config['classes']}"
        )
    context, val_size = config["shape"][0], config["val_size"]
    test_start = len(tokens) - len(tokens) // 10
    least = 2 * context + 1  # characters of the shortest split that has an example wherever its cuts are shifted to
    train_end = test_start - val_size
    if least > len(tokens) - test_start or 2 * least > test_start:
        raise ConfigError(f"dataset.shape=[{context}]: must be shorter, the text has {len(tokens)} characters")
    if not least <= val_size <= test_start - least:
        raise ConfigError(f"dataset.val_size={val_size}: must be between {least} and {test_start - least} characters")
    train_size = config.get("train_size")
    if train_size is not None and not least <= train_size <= train_end:
        raise ConfigError(
            f"dataset.train_size={train_size}: must be null or between {least} and {train_end} characters"
        )
    return Data(
        train=Text(tokens[:train_end][:train_size], context, device, bool(config.get("shift"))),
        val=Text(tokens[train_end:test_start], context, device),
        test=Text(tokens[test_start:], context, device),
        checksum=checksum(config, root),
    )
