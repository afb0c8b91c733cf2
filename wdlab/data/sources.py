"""Readers of whole data sets from files onto the CPU.

Images are read from the first of these that exists:

1. ``<root>/<name>/train.parquet`` and ``test.parquet``, in the Hugging Face hub's layout;
2. torchvision's own files under ``<root>``;
3. torchvision's download.

Text is read from ``<root>/<name>.txt``. Two data sets are parts of scikit-learn and need no files: ``digits`` (8x8
images) and ``descriptions`` (the texts that describe its data sets).
"""

import contextlib
import functools
import importlib.util
import io
import socket
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wdlab.errors import DataError

TORCHVISION_CLASSES = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
}
INSTALLED = ("digits", "descriptions")  # parts of scikit-learn
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")
DOWNLOAD_TIMEOUT_S = 20


@functools.lru_cache(maxsize=2)
def read_images_and_labels(name: str, root: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the images and labels of the training set and of the test set.

    The results of the last two different calls are cached, for sweeps.

    Args:
        name: name of the data set, see the top of this file.
        root: folder of the data sets' files.

    Returns:
        Training pixels, training labels, test pixels, test labels: pixels are uint8 (n, c, h, w), labels int64 (n,).

    Raises:
        DataError: if the files are missing and cannot be downloaded, or cannot be read.
    """
    if name == "digits":
        return _read_digits()
    folder = Path(root) / name
    if (folder / "train.parquet").is_file() and (folder / "test.parquet").is_file():
        return *_read_parquet(folder / "train.parquet"), *_read_parquet(folder / "test.parquet")
    if name not in TORCHVISION_CLASSES:
        raise DataError(f"dataset={name}: no {name}/train.parquet and {name}/test.parquet under {root}")
    train, test = _torchvision(name, root)
    return *_from_torchvision(train), *_from_torchvision(test)


def _read_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scikit-learn's 1,797 digits in the form of ``read_images_and_labels``. Every fifth digit is a test image.

    Pixels from 0 to 16 are stretched to 0 to 255. The file is read directly, since importing scikit-learn takes longer
    than a short run.
    """
    table = np.loadtxt(_scikit_learn_folder() / "data" / "digits.csv.gz", delimiter=",")  # 64 pixels and the label
    pixels = torch.from_numpy((table[:, :64] * (255 / 16)).round().astype(np.uint8)).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, 64].astype(np.int64))
    test = torch.arange(len(labels)) % 5 == 4
    return pixels[~test], labels[~test], pixels[test], labels[test]


def _scikit_learn_folder() -> Path:
    """Return the folder of scikit-learn's data sets, without importing scikit-learn."""
    (package,) = importlib.util.find_spec("sklearn").submodule_search_locations
    return Path(package) / "datasets"


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
    labels = torch.as_tensor(dataset.targets if hasattr(dataset, "targets") else dataset.labels, dtype=torch.int64)
    pixels = np.asarray(dataset.data)
    # Of these data sets only SVHN already has its channels first.
    return torch.from_numpy(pixels) if pixels.shape[1] == 3 else _channels_first(pixels), labels


def _channels_first(images: np.ndarray) -> Tensor:
    """Return images (n, h, w) or (n, h, w, c) as a contiguous tensor (n, c, h, w)."""
    pixels = torch.from_numpy(images.copy())
    return pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def _torchvision(name: str, root: str) -> tuple[Any, Any]:
    """Return torchvision's training and test set under ``root``, downloaded if they are missing.

    Raises:
        DataError: if the download fails. New folders that the download left empty are removed.
    """
    import torchvision

    make = getattr(torchvision.datasets, TORCHVISION_CLASSES[name])

    def both(**options: Any) -> tuple[Any, Any]:
        if name == "svhn":
            return make(root, split="train", **options), make(root, split="test", **options)
        return make(root, train=True, **options), make(root, train=False, **options)

    try:
        return both()
    except RuntimeError:
        pass  # the files are missing: download them
    folders = [Path(root) / TORCHVISION_CLASSES[name] / "raw", Path(root) / TORCHVISION_CLASSES[name], Path(root)]
    made = [folder for folder in folders if not folder.exists()]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        return both(download=True)
    except Exception as error:
        _remove_if_empty(made)
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise DataError(
            f"dataset={name}: not found under {root} and the download failed ({reason}); run make fetch-{name} on a "
            f"machine with a network and copy its data/, or put {name}/train.parquet and {name}/test.parquet (Hugging "
            "Face hub layout) there, or set WDLAB_DATA to the folder that has them"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _remove_if_empty(folders: list[Path]) -> None:
    """Remove each folder that exists and is empty."""
    for folder in folders:
        with contextlib.suppress(OSError):  # raised if the folder is missing or not empty
            folder.rmdir()


@functools.lru_cache(maxsize=2)
def read_text_tokens(name: str, root: str) -> tuple[Tensor, int]:
    """Return a text as tokens, one per character.

    The results of the last two different calls are cached, for sweeps.

    Args:
        name: name of the data set, see the top of this file.
        root: folder of the data sets' files.

    Returns:
        The tokens, int64 (characters,), and the number of different characters. The different characters are numbered
        from 0 in the order of their code points; a token is the number of its character.

    Raises:
        DataError: if ``<root>/<name>.txt`` is missing or is not readable UTF-8 text.
    """
    path = Path(root) / f"{name}.txt"
    paths = sorted((_scikit_learn_folder() / "descr").glob("*.rst")) if name == "descriptions" else [path]
    try:
        characters = np.array(list("\n".join(file.read_text(encoding="utf-8") for file in paths)))
    except FileNotFoundError as error:
        raise DataError(
            f"dataset={name}: not found; put the text at {path}, or set WDLAB_DATA to the folder that has it"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable UTF-8 text ({type(error).__name__})") from error
    vocabulary, tokens = np.unique(characters, return_inverse=True)
    return torch.from_numpy(tokens.astype(np.int64)), len(vocabulary)
