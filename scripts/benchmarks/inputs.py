"""The cost of a batch: from wdlab's splits in memory, and from torchvision's transforms in a DataLoader."""

import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torchvision.transforms import RandomCrop, RandomHorizontalFlip, RandomRotation

from benchmarks import loaders
from benchmarks.timing import SPEED_UP, Case, Options, Page, Part, compared, in_turn, part
from wdlab.data import Batches, Images
from wdlab.data.augment import Augment

REPEATS = 20
LONGER = 50  # factor on options.milliseconds, so that a measurement of wdlab's batches contains whole epochs
CIFAR, MNIST = (3, 32, 32), (1, 28, 28)
CIFAR_MEAN, CIFAR_STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
MNIST_MEAN, MNIST_STD = [0.1307], [0.3081]
CIFAR_TARGET, MNIST_TARGET = 20.0, 70.0
MNIST_REMARK = (
    "The target is against torchvision's data set in a DataLoader, as users have it. The other three loaders take "
    "tensors that were normalized once, as ours are. Two of them collate examples one by one; the third, which indexes "
    "whole batches, only draws the order in addition. Ours is one index_select of 0.6 MB, so no loader that copies the "
    "batch can be 70 times slower."
)
STEADY = "random uint8 pixels; a batch in the middle of a stream of epochs, with workers started"


def table(options: Options) -> Page:
    """Return the times of a batch, from random images."""
    options = options.at_most(REPEATS)
    return Page("The cost of a batch", [_cifar(options, rotated=False), _cifar(options, rotated=True), _mnist(options)])


def _cifar(options: Options, rotated: bool) -> Part:
    """Return the times of an augmented batch of CIFAR-10's shape; ``rotated`` adds rotation and pads by reflection."""
    pixels, labels = loaders.random_images(CIFAR, options.sized(50_000, 600))
    batch_size = options.sized(128, 32)
    padding, turned = ("reflect", [RandomRotation(10)]) if rotated else ("zero", [])
    crop = RandomCrop(32, padding=4, padding_mode="reflect" if rotated else "constant")
    theirs = loaders.torchvision_loader(
        pixels, labels, CIFAR_MEAN, CIFAR_STD, batch_size, crop, RandomHorizontalFlip(), *turned
    )
    augment = Augment(crop=4, padding=padding, flip=True, rotation=10.0 if rotated else 0.0)
    split = Images(pixels, labels, CIFAR_MEAN, CIFAR_STD, options.device, augment)
    base = _theirs("torchvision + DataLoader, 2 workers", theirs, options, loaders.AHEAD)
    title = f"CIFAR-10, {padding} padding, crop, flip{', rotation 10' if rotated else ''}"
    problem = f"{len(labels)} images of 3 x 32 x 32, batches of {batch_size}, augmented and normalized; {STEADY}"
    ours = _ours(split, batch_size, options, None if rotated else CIFAR_TARGET)
    return part(title, problem, base, [ours], options, SPEED_UP, (batch_size, "images"))


def _mnist(options: Options) -> Part:
    """Return the times of a batch of MNIST's shape, against several DataLoaders; only torchvision's has a target."""
    pixels, labels = loaders.random_images(MNIST, options.sized(60_000, 600))
    batch_size = options.sized(200, 32)
    split = Images(pixels, labels, MNIST_MEAN, MNIST_STD, options.device)
    images = Images(pixels, labels, MNIST_MEAN, MNIST_STD, labels.device).examples(slice(0, len(labels)))[0]
    ours = _ours(split, batch_size, options, None)
    theirs = _mnist_loaders(pixels, images, labels, batch_size, options)
    title, items = "MNIST", (batch_size, "images")
    seconds = in_turn(title, [ours, *theirs], options)
    best = min(range(len(theirs)), key=lambda k: statistics.median(seconds[k + 1]))
    rows = [compared(c, times, c, times, SPEED_UP, items) for c, times in zip(theirs, seconds[1:], strict=True)]
    for k, other in enumerate(theirs):
        case = replace(ours, target=MNIST_TARGET if k == 0 else None, note="the fastest" if k == best else "")
        rows.append(compared(case, seconds[0], other, seconds[k + 1], SPEED_UP, items))
    problem = (
        f"{len(labels)} images of 1 x 28 x 28, batches of {batch_size}, normalized, without augmentation; {STEADY}"
    )
    return Part(title, problem, SPEED_UP, options.repeats, rows, items, [MNIST_REMARK])


def _mnist_loaders(pixels: Tensor, images: Tensor, labels: Tensor, batch_size: int, options: Options) -> list[Case]:
    """Return cases of several DataLoaders: torchvision's over ``pixels``, the others over normalized ``images``."""
    pictures = loaders.torchvision_loader(pixels, labels, MNIST_MEAN, MNIST_STD, batch_size)
    alone, shared = (loaders.tensor_loader(images, labels, batch_size, workers) for workers in (0, loaders.WORKERS))
    indexing = loaders.indexing_loader(images, labels, batch_size)
    return [
        _theirs("torchvision + DataLoader, 2 workers", pictures, options, loaders.AHEAD),
        _theirs("DataLoader of normalized tensors, 2 workers", shared, options, loaders.AHEAD),
        _theirs("DataLoader of normalized tensors, 0 workers", alone, options),
        _theirs(
            "DataLoader of normalized tensors, whole batches indexed",
            indexing,
            options,
            note="BatchSampler as sampler, batch_size=None, 0 workers",
        ),
    ]


def _theirs(what: str, loader: Any, options: Options, ahead: int = 0, note: str = "") -> Case:
    """Return a case that takes batches from a DataLoader; ``ahead`` as in ``loaders.Steady``."""
    stream = loaders.endless(loader, options.device)
    return _case(what, lambda: next(stream), options, ahead, None, note)


def _ours(split: Images, batch_size: int, options: Options, target: float | None) -> Case:
    """Return a case that takes batches from a split of wdlab in memory."""
    batches, steps = Batches(split, batch_size, seed=0), itertools.count()
    return _case("wdlab", lambda: batches(next(steps)), options, 0, target)


def _case(
    what: str, once: Callable[[], Any], options: Options, ahead: int, target: float | None, note: str = ""
) -> Case:
    """Return a case that times ``once``, which takes one batch; ``ahead`` as in ``loaders.Steady``."""
    seconds = LONGER * options.milliseconds / 1000
    return Case(what, loaders.Steady(once, options, seconds, ahead), target, note, timed=True)
