"""The input pipelines that wdlab is compared with: torchvision's transforms and torch's DataLoader."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset
from torchvision import transforms

from benchmarks.timing import Options

WORKERS = 2
AHEAD = 2 * WORKERS  # batches that the workers of a DataLoader prepare in advance


def random_images(shape: tuple[int, ...], count: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Return random uint8 pixels (count, *shape) and int64 labels (count,)."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(classes, (count,), generator=generator)


class Pictures(Dataset):
    """A data set that makes its examples as torchvision's CIFAR10 and MNIST do: a PIL image, then the transform."""

    def __init__(self, pixels: Tensor, labels: Tensor, transform: Callable[[Image.Image], Tensor]) -> None:
        self._pixels, self._labels, self._transform = pixels.permute(0, 2, 3, 1).numpy(), labels.tolist(), transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        pixels = self._pixels[row]
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return self._transform(image), self._labels[row]


def torchvision_loader(
    pixels: Tensor, labels: Tensor, mean: list[float], std: list[float], batch_size: int, *varied: Any
) -> DataLoader:
    """Return a DataLoader with torchvision's transforms and two workers; ``varied``: transforms before ``ToTensor``."""
    transform = transforms.Compose([*varied, transforms.ToTensor(), transforms.Normalize(mean, std)])
    pictures = Pictures(pixels, labels, transform)
    return DataLoader(pictures, batch_size, shuffle=True, drop_last=True, num_workers=WORKERS, persistent_workers=True)


def tensor_loader(images: Tensor, labels: Tensor, batch_size: int, workers: int) -> DataLoader:
    """Return a DataLoader of normalized tensors, which collates its batches from single examples."""
    return DataLoader(
        TensorDataset(images, labels),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def indexing_loader(images: Tensor, labels: Tensor, batch_size: int) -> DataLoader:
    """Return a DataLoader that indexes whole batches: its sampler yields the rows of a batch."""
    examples = TensorDataset(images, labels)
    batches = BatchSampler(RandomSampler(examples), batch_size, drop_last=True)
    return DataLoader(examples, batch_size=None, sampler=batches)


def endless(loader: Iterable[Any], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches on ``device``, epoch after epoch without an end."""
    for _ in itertools.count():
        for images, labels in loader:
            yield images.to(device), labels.to(device)


class Steady:
    """A timer of a stream of batches in its steady state. Calling it returns the seconds per batch.

    Each call first takes the batches that the workers prepared while other cases were timed. After the measurement it
    waits until the workers have prepared as many batches again, so that they do not work while the next case is timed.

    Args:
        once: takes the next batch.
        options: the options of the command line.
        seconds: least duration of a measurement.
        ahead: number of batches that the workers prepare in advance; 0 without workers.
    """

    def __init__(self, once: Callable[[], Any], options: Options, seconds: float, ahead: int = 0) -> None:
        self._once, self._options, self._least, self._ahead = once, options, seconds, ahead

    def __call__(self) -> float:
        for _ in range(self._ahead + 1):
            self._once()
        self._options.synchronize()
        count, start = 0, time.perf_counter()
        while count == 0 or time.perf_counter() - start < self._least:
            self._once()
            count += 1
        self._options.synchronize()
        seconds = (time.perf_counter() - start) / count
        time.sleep(self._ahead * seconds)
        return seconds
