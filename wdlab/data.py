"""Data sets as whole splits of tensors on the device, and batches that are a pure function of (seed, step).

Sources, in this order: ``<root>/<name>/{train,test}.parquet`` in the Hugging Face hub's layout, torchvision's own files
under ``<root>``, torchvision's download. ``digits`` (8x8 images) comes inside scikit-learn and needs none of them.

Called by ``train``; the loop reads ``Data`` and ``Batches``.
"""

import contextlib
import functools
import hashlib
import io
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from wdlab.errors import ConfigError, DataError

TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")
DOWNLOAD_TIMEOUT_S = 20


@dataclass(frozen=True)
class Split:
    """Normalized float32 ``inputs`` (n, channels, height, width) and int64 ``labels`` (n,), on one device."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """The three splits of a data set and the sha256 of the bytes they were made from."""

    train: Split
    val: Split
    test: Split
    checksum: str


class Batches:
    """Training batches: epoch e visits a permutation drawn from (seed, e), in blocks of ``batch_size``.

    The last, incomplete block of an epoch is dropped, so every step sees ``batch_size`` examples.
    """

    def __init__(self, split: Split, batch_size: int, seed: int) -> None:
        check_batch_size(batch_size, len(split))
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.steps_per_epoch = len(split) // batch_size
        self._epoch = -1
        self._order: Tensor

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of update ``step + 1``, for any ``step`` >= 0 in any order."""
        epoch, block = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.split))
            self._order, self._epoch = torch.from_numpy(order).to(self.split.labels.device), epoch
        index = self._order[block * self.batch_size : (block + 1) * self.batch_size]
        return self.split.inputs.index_select(0, index), self.split.labels.index_select(0, index)


def load(config: Mapping[str, Any], root: str | Path, device: torch.device) -> Data:
    """The data set a ``configs/dataset`` file describes.

    Args:
        config: ``name``, ``shape``, ``classes``, ``mean``, ``std`` (of pixels in [0, 1], per channel), ``val_size``
            (examples taken from the training set), ``per_class`` (training examples kept per class, null for all) and
            ``split_seed``.
        root: where the files are; not needed for ``digits``.
        device: where the tensors go.

    Raises:
        DataError: if the files are missing and cannot be downloaded, or do not hold what the config says.
    """
    train_pixels, train_labels, test_pixels, test_labels = _read_as_described(config, root)
    train_rows, val_rows = _split_rows(train_labels, config)
    digest = hashlib.sha256()
    for array in (train_pixels, train_labels, test_pixels, test_labels):
        digest.update(array.numpy().tobytes())

    def split(pixels: Tensor, labels: Tensor) -> Split:
        shaped = (1, -1, 1, 1)
        mean = torch.tensor(list(config["mean"])).reshape(shaped)
        std = torch.tensor(list(config["std"])).reshape(shaped)
        return Split(((pixels.float() / 255 - mean) / std).contiguous().to(device), labels.to(device))

    return Data(
        train=split(train_pixels[train_rows], train_labels[train_rows]),
        val=split(train_pixels[val_rows], train_labels[val_rows]),
        test=split(test_pixels, test_labels),
        checksum=digest.hexdigest(),
    )


def check(config: Mapping[str, Any], root: str | Path, batch_size: int) -> None:
    """Make sure a data set can be had, downloading it if need be, and that a training batch can be drawn from it.

    Raises:
        DataError: if the files are missing and cannot be downloaded, in one line that says what to put where.
        ConfigError: if the split or the batch size does not fit the data.
    """
    _check_description(config)
    _, labels, _, _ = _read_as_described(config, root)
    check_batch_size(batch_size, len(_split_rows(labels, config)[0]))


def check_batch_size(batch_size: int, examples: int) -> None:
    """Raise a ConfigError unless one batch fits into the training set."""
    if not 1 <= batch_size <= examples:
        raise ConfigError(f"train.batch_size={batch_size}: must be between 1 and {examples}, the training examples")


def _check_description(config: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a ``configs/dataset`` value of the wrong kind, or a key that nothing reads."""

    def whole(value: Any, least: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    def numbers(values: Any, count: int) -> bool:
        return isinstance(values, list) and len(values) == count and all(isinstance(v, int | float) for v in values)

    values = {key: list(v) if OmegaConf.is_list(v) else v for key, v in config.items()}
    shape = values["shape"]
    good_shape = isinstance(shape, list) and len(shape) == 3 and all(whole(size, 1) for size in shape)
    channels = shape[0] if good_shape else 0
    good_std = numbers(values["std"], channels) and all(v > 0 for v in values["std"])
    allowed = {
        "name": (True, ""),
        "source": (True, ""),
        "shape": (good_shape, "channels, height and width"),
        "classes": (whole(values["classes"], 2), "a whole number >= 2"),
        "mean": (numbers(values["mean"], channels), "a list with a number per channel"),
        "std": (good_std, "a list with a number > 0 per channel"),
        "val_size": (whole(values["val_size"], 1), "a whole number >= 1"),
        "per_class": (values["per_class"] is None or whole(values["per_class"], 1), "null or a whole number >= 1"),
        "split_seed": (whole(values["split_seed"], 0), "a whole number >= 0"),
    }
    for key, value in values.items():
        if key not in allowed:
            raise ConfigError(f"dataset.{key}: unknown key; allowed: {', '.join(allowed)}")
        good, wanted = allowed[key]
        if not good:
            raise ConfigError(f"dataset.{key}={value}: must be {wanted}")


def _read_as_described(config: Mapping[str, Any], root: str | Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source = str(config.get("source") or config["name"])
    parts = _read(source, str(root))
    expected, found = (tuple(config["shape"]), config["classes"]), (tuple(parts[0].shape[1:]), int(parts[1].max()) + 1)
    if found != expected:
        raise DataError(
            f"dataset={config['name']}: {source} under {root} holds images {found[0]} in {found[1]} classes, expected "
            f"{expected[0]} in {expected[1]}"
        )
    return parts


def _split_rows(labels: Tensor, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Row numbers of the training and validation split, drawn once from ``split_seed``."""
    val_size, per_class = config["val_size"], config["per_class"]
    if not 0 < val_size < len(labels):
        raise ConfigError(f"dataset.val_size={val_size}: must be between 1 and {len(labels) - 1}")
    order = torch.from_numpy(np.random.default_rng(config["split_seed"]).permutation(len(labels)))
    train, val = order[:-val_size], order[-val_size:]
    if per_class is None:
        return train, val
    kept = [train[labels[train] == c][:per_class] for c in range(config["classes"])]
    if per_class < 1 or min(len(rows) for rows in kept) < per_class:
        fewest = min(int((labels[train] == c).sum()) for c in range(config["classes"]))
        raise ConfigError(f"dataset.per_class={per_class}: must be null or between 1 and {fewest}")
    return torch.cat(kept), val


@functools.lru_cache(maxsize=2)
def _read(name: str, root: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """uint8 pixels (n, c, h, w) and int64 labels (n,) of the training and the test set. Cached for sweeps."""
    if name == "digits":
        return _read_digits()
    folder = Path(root) / name
    if (folder / "train.parquet").is_file() and (folder / "test.parquet").is_file():
        return *_read_parquet(folder / "train.parquet"), *_read_parquet(folder / "test.parquet")
    if name not in TORCHVISION:
        raise DataError(f"dataset={name}: no {name}/train.parquet and {name}/test.parquet under {root}")
    train, test = _torchvision(name, root)
    return *_from_torchvision(train), *_from_torchvision(test)


def _read_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's 1,797 digits, pixels 0..16 stretched to 0..255; every fifth one is the test set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    test = torch.arange(len(labels)) % 5 == 4
    return pixels[~test], labels[~test], pixels[test], labels[test]


def _read_parquet(path: Path) -> tuple[Tensor, Tensor]:
    import pyarrow.parquet
    from PIL import Image

    try:
        table = pyarrow.parquet.read_table(path)
        image_column = next(c for c in IMAGE_COLUMNS if c in table.column_names)
        label_column = next(c for c in LABEL_COLUMNS if c in table.column_names)
        encoded = table[image_column].combine_chunks().field("bytes").to_pylist()
        images = np.stack([np.asarray(Image.open(io.BytesIO(b))) for b in encoded])
    except Exception as error:
        raise DataError(
            f"{path}: not a readable table of images with columns {' or '.join(IMAGE_COLUMNS)} holding bytes, and "
            f"{' or '.join(LABEL_COLUMNS)} ({type(error).__name__})"
        ) from error
    return _channels_first(images), torch.from_numpy(table[label_column].to_numpy().astype(np.int64))


def _from_torchvision(dataset: Any) -> tuple[Tensor, Tensor]:
    return _channels_first(np.asarray(dataset.data)), torch.as_tensor(dataset.targets, dtype=torch.int64)


def _channels_first(images: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(images.copy())
    return pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def _torchvision(name: str, root: str) -> tuple[Any, Any]:
    """torchvision's training and test set under ``root``, downloaded if they are not there."""
    import torchvision

    dataset = getattr(torchvision.datasets, TORCHVISION[name])
    try:
        return dataset(root, train=True), dataset(root, train=False)
    except RuntimeError:
        pass  # not there yet
    folders = [Path(root) / TORCHVISION[name] / "raw", Path(root) / TORCHVISION[name], Path(root)]
    made = [folder for folder in folders if not folder.exists()]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        return dataset(root, train=True, download=True), dataset(root, train=False, download=True)
    except Exception as error:
        _remove_if_empty(made)
        raise DataError(
            f"dataset={name}: not found under {root} and the download failed ({type(error).__name__}); put "
            f"{name}/train.parquet and {name}/test.parquet (Hugging Face hub layout) or torchvision's files there, or "
            "set WDLAB_DATA to the folder that has them"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _remove_if_empty(folders: list[Path]) -> None:
    """Undo what a failed download made."""
    for folder in folders:
        with contextlib.suppress(OSError):  # not there, or not empty
            folder.rmdir()
