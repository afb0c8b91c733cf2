"""Augmentations, pixel by pixel against slow and plain code."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import functional

from wdlab.data.augment import Augment, ImageVariations
from wdlab.data.batches import Batches
from wdlab.data.splits import Images

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 3, 12, 10), dtype=np.uint8))


@pytest.mark.parametrize("padding", ["zero", "reflect"])
def test_a_crop_is_a_window_of_the_padded_image(padding):
    augment = Augment(crop=3, padding=padding, flip=True)
    drawn = augment.draw(np.random.default_rng(1), 40, (12, 10))
    assert set(drawn.top.tolist()) == set(drawn.left.tolist()) == set(range(7)) and 8 < drawn.mirrored.sum() < 32
    out = augment(augment.pad(IMAGES), drawn)
    assert out.dtype == torch.uint8 and out.shape == IMAGES.shape
    mode = {"zero": "constant", "reflect": "reflect"}[padding]
    for i, image in enumerate(IMAGES):
        wide = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (3, 3), (3, 3)), mode))
        window = wide[:, drawn.top[i] : drawn.top[i] + 12, drawn.left[i] : drawn.left[i] + 10]
        assert torch.equal(out[i], window.flip(2) if drawn.mirrored[i] else window)


def test_a_rotation_is_that_of_torchvision():
    smooth = nn.functional.interpolate(IMAGES[:, :, :4, :4].float(), (33, 33), mode="bicubic").clamp(0, 255).byte()
    degrees = torch.linspace(-30, 30, 40)
    zeros = torch.zeros(40, dtype=torch.int64)
    out = Augment(rotation=30.0)(smooth, ImageVariations(zeros, zeros, None, degrees.deg2rad()))
    theirs = torch.stack([functional.rotate(image, angle.item()) for image, angle in zip(smooth, degrees, strict=True)])
    assert (out == theirs).float().mean() > 0.999  # ties of the nearest neighbour may be rounded either way


def test_turned_images_are_cropped_from_the_padded_ones():
    augment = Augment(crop=2, padding="reflect", rotation=10.0, flip=True)
    drawn = augment.draw(np.random.default_rng(1), 40, (12, 10))
    padded = augment.pad(IMAGES)
    assert drawn.angle.abs().max() <= np.deg2rad(10) and drawn.angle.std() > 0.05
    whole = Augment(rotation=10.0)(padded, ImageVariations(0 * drawn.top, 0 * drawn.top, None, drawn.angle))
    cropped = Augment(crop=2, flip=True)(whole, drawn._replace(angle=None))
    assert torch.equal(augment(padded, drawn), cropped)


def test_a_square_is_hidden_by_the_mean_behind_everything_else():
    device, rows = torch.device("cpu"), torch.arange(40)
    cut, whole = (
        Images(IMAGES, rows, [0.5] * 3, [0.2] * 3, device, Augment(crop=2, flip=True, cutout=side)) for side in (5, 0)
    )
    drawn, same = (images.draw(np.random.default_rng(1)) for images in (cut, whole))
    assert torch.equal(drawn.top, same.top) and torch.equal(drawn.mirrored, same.mirrored) and same.hidden is None
    assert [set(places.tolist()) for places in drawn.hidden.T] == [set(range(-2, 10)), set(range(-2, 8))]
    expected = whole.varied(rows, drawn)[0].clone()
    for image, (top, left) in zip(expected, drawn.hidden.tolist(), strict=True):
        image[:, max(0, top) : top + 5, max(0, left) : left + 5] = 0
    assert torch.equal(cut.varied(rows, drawn)[0], expected) and not torch.equal(expected, whole.varied(rows, drawn)[0])


def test_nothing_to_vary_is_no_augmentation():
    assert Augment.from_config(None) is None
    assert Augment.from_config({"crop": 0, "padding": "zero", "flip": False, "rotation": None}) is None
    assert Augment.from_config({"crop": None, "flip": True}) == Augment(flip=True)


AUGMENTS = [
    Augment(crop=4),
    Augment(flip=True),
    Augment(crop=4, padding="reflect", flip=True, rotation=10.0, cutout=5),
]


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_varied_batch_is_a_pure_function_of_seed_and_step(augment):
    split = Images(IMAGES, torch.arange(40), [0.5] * 3, [0.2] * 3, torch.device("cpu"), augment)
    forward, backward = Batches(split, 8, seed=3), Batches(split, 8, seed=3)
    ahead = [forward(step) for step in range(15)]
    behind = [backward(step) for step in reversed(range(15))][::-1]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(ahead, behind, strict=True))
    assert not torch.equal(ahead[0][0], Batches(split, 8, seed=4)(0)[0])
    epochs = [torch.cat([x for x, _ in ahead[k : k + 5]]) for k in (0, 5)]
    orders = [torch.cat([y for _, y in ahead[k : k + 5]]).argsort() for k in (0, 5)]
    assert not torch.equal(epochs[0][orders[0]], epochs[1][orders[1]])  # the next epoch varies the images otherwise


def test_the_order_of_the_examples_does_not_depend_on_the_augmentation():
    labels, device = torch.arange(40), torch.device("cpu")
    plain, varied = (Images(IMAGES, labels, [0.5] * 3, [0.2] * 3, device, a) for a in (None, AUGMENTS[0]))
    assert torch.equal(Batches(plain, 8, 0)(9)[1], Batches(varied, 8, 0)(9)[1])


def test_padding_is_black_before_normalization_and_evaluation_sees_the_images_themselves():
    plain, varied = (
        Images(IMAGES, torch.arange(40), [0.5] * 3, [0.25] * 3, torch.device("cpu"), augment)
        for augment in (None, Augment(crop=6))
    )
    for rows in (slice(3, 20), torch.tensor([4, 1])):
        assert torch.equal(plain.examples(rows)[0], varied.examples(rows)[0])
    border = torch.zeros(8, dtype=torch.int64)
    corner = varied.varied(torch.arange(8), ImageVariations(border, border, None, None))[0]
    assert (corner[:, :, :6] == (0 - 0.5) / 0.25).all() and (corner[:, :, :, :6] == -2).all()
