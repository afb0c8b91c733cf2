"""Loading and checking of the three splits of a data set, as a ``configs/dataset`` file describes them."""

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
from wdlab.data.environment import Environment, environment, is_environment
from wdlab.data.splits import Data, Images, Text
from wdlab.errors import ConfigError, DataError


def load(config: Mapping[str, Any], root: str | Path, device: torch.device) -> Data | Environment:
    """Load the three splits of the data set that a ``configs/dataset`` file describes, or return its environment.

    Keys of every data set:

    * ``name``; and ``source``, the name of its files if it differs from ``name``;
    * ``shape``: (channels, height, width) of an image, or (context,) of a text;
    * ``classes``: number of classes of images, or of different characters of a text;
    * ``val_size``: examples (or characters) taken from the training set for validation;
    * ``train_size``: training examples (or characters) kept, null for all;
    * ``split_seed``: seed of the split.

    Keys of images:

    * ``mean`` and ``std``: mean and standard deviation of pixels in [0, 1], per channel;
    * ``per_class``: training examples kept per class, null for all;
    * ``label_noise``: share of the training labels that are replaced by a random other class, with seed ``split_seed``;
    * ``augment``: see ``Augment``.

    Key of a text: ``shift``, see ``Text``.

    Args:
        config: the values of the file.
        root: folder of the data sets' files. Not read for ``digits`` and ``descriptions``.
        device: device of all tensors of the splits.

    Raises:
        DataError: if the files are missing and cannot be downloaded, or if their contents contradict the config.
        ConfigError: if the config requests a split that is larger than the data allow.
    """
    if is_environment(config):
        return environment(config)
    return _load_text(config, root, device) if is_text(config) else _load_images(config, root, device)


def check_data_and_batch_size(
    config: Mapping[str, Any], root: str | Path, batch_size: int, ranks: int = 1
) -> int | None:
    """Check a data set and the batch size. The data set is downloaded if its files are missing.

    Args:
        config: the values of a ``configs/dataset`` file.
        root: folder of the data sets' files.
        batch_size: examples per step; at most the number of training examples, and a multiple of ``ranks``.
        ranks: number of processes that share a batch.

    Returns:
        The number of training examples; None for an environment.

    Raises:
        DataError: if the files are missing and cannot be downloaded, or if their contents contradict the config. For
            missing files the message is one line that names the files and the folder to put them in.
        ConfigError: if the config is invalid, or if its splits or the batch size do not fit the data.
    """
    check_description(config)
    if is_environment(config):
        return None
    if is_text(config):
        examples = len(load(config, root, torch.device("cpu")).train)
    else:
        examples = len(_split_rows(_images_as_described(config, root)[1], config)[0])
    check_batch_size(batch_size, examples, ranks)
    return examples


def checksum(config: Mapping[str, Any], root: str | Path) -> str:
    """Return the SHA-256 in hexadecimal of a data set before it is split: of all images and labels, or of all tokens.

    Args:
        config: the values of a ``configs/dataset`` file.
        root: folder of the data sets' files.

    Raises:
        DataError: if the files are missing and cannot be downloaded, or cannot be read.
    """
    if is_environment(config):
        return environment(config).checksum
    read = sources.read_text_tokens if is_text(config) else sources.read_images_and_labels
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
    """Return the four tensors of ``sources.read_images_and_labels``, checked against the config.

    Returns:
        Training pixels, training labels, test pixels, test labels.

    Raises:
        DataError: if shapes or labels contradict the config.
    """
    source = str(config.get("source") or config["name"])
    pixels, labels, test_pixels, test_labels = sources.read_images_and_labels(source, str(root))
    expected, loaded = (tuple(config["shape"]), config["classes"]), (tuple(pixels.shape[1:]), int(labels.max()) + 1)
    if loaded != expected:
        raise DataError(
            f"dataset={config['name']}: {source} under {root} holds images {loaded[0]} in {loaded[1]} classes, "
            f"expected {expected[0]} in {expected[1]}"
        )
    if test_pixels.shape[1:] != pixels.shape[1:]:
        raise DataError(
            f"dataset={config['name']}: {source} under {root} has test images of {tuple(test_pixels.shape[1:])}, "
            f"expected {expected[0]}"
        )
    for split, split_labels in (("training", labels), ("test", test_labels)):
        lowest, highest = int(split_labels.min()), int(split_labels.max())
        if lowest < 0 or highest >= config["classes"]:
            raise DataError(
                f"dataset={config['name']}: {source} under {root} has {split} labels from {lowest} to {highest}, "
                f"expected 0 to {config['classes'] - 1}"
            )
    return pixels, labels, test_pixels, test_labels


def _split_rows(labels: Tensor, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the row numbers of the training and of the validation split, drawn once from ``split_seed``.

    A smaller training split is a subset of a larger one. The validation split does not depend on the training split's
    size.

    Raises:
        ConfigError: if the config requests a split that is larger than the data allow.
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
    return train[kept.sort().values], val  # sorted, since in the order of classes the first n would have few classes


def with_label_noise(labels: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Return a copy of labels (n,), in which the share ``config["label_noise"]`` is replaced by random other classes.

    The share is rounded to whole examples. If it is 0 or null, ``labels`` itself is returned.
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
    """Return the splits of a text: the last tenth for test, before it ``val_size`` characters for validation.

    The training split begins at the start of the text and has ``train_size`` characters; null keeps all that remain.

    Raises:
        DataError: if the number of different characters is not ``classes``.
        ConfigError: if a split would be too short for one example of ``shape`` characters, or longer than the text.
    """
    tokens, vocabulary = sources.read_text_tokens(str(config.get("source") or config["name"]), str(root))
    if vocabulary != config["classes"]:
        raise DataError(
            f"dataset={config['name']}: the text under {root} has {vocabulary} different characters, expected "
            f"{config['classes']}"
        )
    context, val_size = config["shape"][0], config["val_size"]
    test_start = len(tokens) - len(tokens) // 10
    least = 2 * context + 1  # characters of the shortest split that has an example after every shift
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
