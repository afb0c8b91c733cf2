"""Splits, sources and batches."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits

from tests.conftest import png
from wdlab import data
from wdlab.data import sources, splits
from wdlab.errors import ConfigError, DataError
from wdlab.records.identity import compose_config

CPU = torch.device("cpu")


def config(*overrides: str):
    return compose_config(overrides)["dataset"]


def inputs(split: data.Split) -> torch.Tensor:
    return split.examples(slice(None))[0]


def test_digits_are_those_of_scikit_learn():
    pixels, labels, test_pixels, test_labels = sources.read_images_and_labels("digits", "nowhere")
    digits = load_digits()
    test = np.arange(len(digits.target)) % 5 == 4
    for rows, of_pixels, of_labels in ((~test, pixels, labels), (test, test_pixels, test_labels)):
        assert np.array_equal(of_pixels[:, 0], (digits.images[rows] * (255 / 16)).round())
        assert np.array_equal(of_labels, digits.target[rows])


def test_digits_are_split_normalized_and_the_same_every_time():
    digits = data.load(config("dataset=digits"), "nowhere", CPU)
    assert [len(s) for s in (digits.train, digits.val, digits.test)] == [1200, 238, 359]
    images = inputs(digits.train)
    assert images.shape == (1200, 1, 8, 8) and images.dtype == torch.float32
    assert abs(images.mean()) < 0.02 and abs(images.std() - 1) < 0.02
    again = data.load(config("dataset=digits"), "nowhere", CPU)
    assert torch.equal(images, inputs(again.train)) and digits.checksum == again.checksum
    other = data.load(config("dataset=digits", "dataset.split_seed=1"), "nowhere", CPU)
    assert not torch.equal(digits.train.labels, other.train.labels)
    assert torch.equal(inputs(digits.test), inputs(other.test))


def test_per_class_keeps_that_many_training_examples_of_each_class():
    few = data.load(config("dataset=digits", "dataset.per_class=7"), "nowhere", CPU)
    assert few.train.labels.bincount().tolist() == [7] * 10 and len(few.val) == 238


def test_per_class_keeps_the_order_of_the_split():
    """What looks at the first examples alone, as sharpness does, is not to find one class there."""
    whole = data.load(config("dataset=digits"), "nowhere", CPU).train
    few = data.load(config("dataset=digits", "dataset.per_class=40"), "nowhere", CPU).train
    (images, _), (kept, labels) = (split.examples(slice(None)) for split in (whole, few))
    place = {tuple(image.flatten().tolist()): i for i, image in enumerate(images)}
    places = [place[tuple(image.flatten().tolist())] for image in kept]
    assert places == sorted(places)
    assert len(labels[:100].unique()) == 10


@pytest.mark.parametrize("override", ["dataset.per_class=5000", "dataset.per_class=0", "dataset.val_size=0"])
def test_impossible_splits_are_refused(override):
    with pytest.raises(ConfigError, match=f"{override}: must be"):
        data.load(config("dataset=digits", override), "nowhere", CPU)


def test_a_batch_is_a_pure_function_of_seed_and_step():
    split = data.load(config("dataset=digits"), "nowhere", CPU).train
    forward, backward = data.Batches(split, 100, seed=3), data.Batches(split, 100, seed=3)
    ahead = [forward(step) for step in range(30)]
    behind = [backward(step) for step in reversed(range(30))][::-1]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(ahead, behind, strict=True))
    assert not torch.equal(ahead[0][1], data.Batches(split, 100, seed=4)(0)[1])
    assert not torch.equal(ahead[0][1], ahead[12][1])  # the next epoch has another order


def test_an_epoch_visits_every_example_once():
    split = data.load(config("dataset=digits"), "nowhere", CPU).train
    batches = data.Batches(split, 100, seed=0)
    seen = torch.cat([batches(step)[0] for step in range(batches.steps_per_epoch)])
    assert batches.steps_per_epoch == 12
    assert torch.equal(seen.sum(dim=(1, 2, 3)).sort().values, inputs(split).sum(dim=(1, 2, 3)).sort().values)


def test_a_batch_larger_than_the_training_set_is_refused():
    split = data.load(config("dataset=digits"), "nowhere", CPU).train
    with pytest.raises(ConfigError, match=r"train\.batch_size=1201: must be between 1 and 1200"):
        data.Batches(split, 1201, seed=0)


def hub_folder(root, size: int, count: int = 30, parts=("train", "test"), labels=range(10)):
    (root / "mnist").mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)
    table = pd.DataFrame({"image": [png(p) for p in pixels], "label": np.resize(labels, count)})
    for part in parts:
        table.to_parquet(root / "mnist" / f"{part}.parquet")
    return pixels


def test_the_hub_layout_is_read_losslessly(tmp_path):
    pixels = hub_folder(tmp_path, 28)
    loaded = data.load(config("dataset=mnist", "dataset.val_size=5"), tmp_path, CPU)
    assert len(loaded.train) == 25 and len(loaded.val) == 5
    restored = (inputs(loaded.test) * 0.3081 + 0.1307) * 255
    assert torch.allclose(restored[:, 0], torch.from_numpy(pixels).float(), atol=1e-3)


def test_data_of_another_shape_than_configured_is_refused(tmp_path):
    hub_folder(tmp_path, 27)
    with pytest.raises(DataError, match=r"holds images \(1, 27, 27\) in 10 classes, expected \(1, 28, 28\)"):
        data.load(config("dataset=mnist", "dataset.val_size=5"), tmp_path, CPU)


@pytest.mark.parametrize(
    ("part", "size", "labels", "told"),
    [
        ("test", 32, range(10), r"test images of \(1, 32, 32\), expected \(1, 28, 28\)"),
        ("test", 28, [-1], "test labels from -1 to -1, expected 0 to 9"),
        ("test", 28, range(11), "test labels from 0 to 10, expected 0 to 9"),
        ("train", 28, range(-1, 10), "training labels from -1 to 9, expected 0 to 9"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(tmp_path, part, size, labels, told):
    hub_folder(tmp_path, 28)
    hub_folder(tmp_path, size, parts=[part], labels=labels)
    with pytest.raises(DataError, match=told):
        data.load(config("dataset=mnist", "dataset.val_size=5"), tmp_path, CPU)


def test_a_file_that_is_no_table_of_images_is_refused(tmp_path):
    (tmp_path / "mnist").mkdir()
    for part in ("train", "test"):
        (tmp_path / "mnist" / f"{part}.parquet").write_text("not parquet")
    with pytest.raises(DataError, match=r"train\.parquet: not a readable table of images"):
        data.load(config("dataset=mnist"), tmp_path, CPU)


def test_mnist_is_mnist(shared_data):
    loaded = data.load(config("dataset=mnist"), shared_data, CPU)
    assert [len(s) for s in (loaded.train, loaded.val, loaded.test)] == [55_000, 5_000, 10_000]
    pixels = torch.cat([inputs(loaded.train), inputs(loaded.val)])
    assert abs(pixels.mean()) < 1e-3 and abs(pixels.std() - 1) < 1e-3
    assert loaded.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_the_mnist_subset_has_a_hundred_images_per_class(shared_data):
    loaded = data.load(config("dataset=mnist_subset"), shared_data, CPU)
    assert loaded.train.labels.bincount().tolist() == [100] * 10 and len(loaded.test) == 10_000


def test_cifar10_is_cifar10(shared_cifar10):
    loaded = data.load(config("dataset=cifar10"), shared_cifar10, CPU)
    assert [len(s) for s in (loaded.train, loaded.val, loaded.test)] == [45_000, 5_000, 10_000]
    assert loaded.test.labels.bincount().tolist() == [1000] * 10
    sample = loaded.train.examples(slice(0, 5000))[0]
    assert sample.shape == (5000, 3, 32, 32)
    assert sample.mean(dim=(0, 2, 3)).abs().max() < 0.05  # the pixels went through JPEG
    assert (sample.std(dim=(0, 2, 3)) - 1).abs().max() < 0.3  # the deviation as released is the mean of those per image
    batch, labels = data.Batches(loaded.train, 128, seed=0)(7)
    assert batch.shape == (128, 3, 32, 32) and batch.dtype == torch.float32 and labels.shape == (128,)


def test_images_are_the_same_normalized_once_or_batch_by_batch(monkeypatch):
    once = data.load(config("dataset=digits"), "", CPU)
    monkeypatch.setattr(splits, "MAX_NORMALIZED_BYTES", 0)
    by_batch = data.load(config("dataset=digits"), "", CPU)
    rows = torch.tensor([5, 3, 900])
    for part in ("train", "val", "test"):
        one, other = getattr(once, part), getattr(by_batch, part)
        assert torch.equal(inputs(one), inputs(other))
    assert torch.equal(once.train.examples(rows)[0], by_batch.train.examples(rows)[0])
    assert torch.equal(data.Batches(once.train, 64, 0)(3)[0], data.Batches(by_batch.train, 64, 0)(3)[0])


def test_a_smaller_training_set_lies_in_the_larger_one():
    small, large = (data.load(config("dataset=digits", f"dataset.train_size={n}"), "", CPU) for n in (100, 1000))
    assert len(small.train) == 100 and torch.equal(inputs(small.train), inputs(large.train)[:100])
    assert torch.equal(inputs(small.val), inputs(large.val))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_label_noise_replaces_that_share_by_other_classes_in_training_alone(share):
    clean = data.load(config("dataset=digits"), "", CPU)
    noisy = data.load(config("dataset=digits", f"dataset.label_noise={share}"), "", CPU)
    changed = noisy.train.labels != clean.train.labels
    assert int(changed.sum()) == round(share * 1200)
    assert noisy.train.labels.min() >= 0 and noisy.train.labels.max() <= 9
    assert torch.equal(noisy.val.labels, clean.val.labels) and torch.equal(noisy.test.labels, clean.test.labels)
    assert torch.equal(inputs(noisy.train), inputs(clean.train))


def shakespeare(root, text: str, **changes):
    (root / "tinyshakespeare.txt").write_text(text)
    node = config("dataset=tinyshakespeare", "model=gpt")
    return data.load({**node, "shape": [4], "classes": len(set(text)), "val_size": 20, **changes}, root, CPU)


def test_a_text_is_cut_into_examples_whose_labels_are_the_next_characters(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(200))
    loaded = shakespeare(tmp_path, text, shift=None)
    tokens = torch.arange(200) % 26
    for split, part in ((loaded.train, tokens[:160]), (loaded.val, tokens[160:180]), (loaded.test, tokens[180:])):
        seen, following = split.examples(slice(None))
        assert seen.shape == following.shape == (len(split), 4) and len(split) == (len(part) - 1) // 4
        assert torch.equal(seen.flatten(), part[: seen.numel()])
        assert torch.equal(following.flatten(), part[1 : seen.numel() + 1])


def test_shifted_cuts_stay_inside_the_text_and_pair_with_the_next_character(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(200))
    train = shakespeare(tmp_path, text).train
    batches = data.Batches(train, 13, seed=1)
    cuts = set()
    for step in range(5 * batches.steps_per_epoch):
        seen, following = batches(step)
        assert torch.equal((seen + 1) % 26, following)
        cuts |= set((seen[:, 0] % 4).tolist())
    assert cuts == {0, 1, 2, 3}


def test_the_real_text_has_its_size(shared_data):
    if not (shared_data / "tinyshakespeare.txt").is_file():
        pytest.skip("no tinyshakespeare.txt beside the data sets")
    loaded = data.load(config("dataset=tinyshakespeare", "model=gpt"), shared_data, CPU)
    characters = [len(s.labels) for s in (loaded.train, loaded.val, loaded.test)]
    assert sum(characters) == 1_115_394 and characters[1:] == [55_770, 111_539]


def test_a_text_that_is_not_there_or_has_other_characters_is_told(tmp_path):
    with pytest.raises(DataError, match=r"dataset=tinyshakespeare: not found; put the text at .*tinyshakespeare\.txt"):
        data.load(config("dataset=tinyshakespeare"), tmp_path, CPU)
    (tmp_path / "tinyshakespeare.txt").write_text("abc" * 100)
    with pytest.raises(DataError, match="has 3 different characters, expected 65"):
        data.load(config("dataset=tinyshakespeare"), tmp_path, CPU)


def test_processes_share_a_batch_without_overlap():
    split = data.load({**config("dataset=digits"), "augment": {"crop": 1, "flip": True}}, "", CPU).train
    whole, parts = data.Batches(split, 60, 0), [data.Batches(split, 60, 0, rank, 3) for rank in range(3)]
    for step in (0, 7, 25):
        shares = [batches(step) for batches in parts]
        assert all(len(labels) == 20 for _, labels in shares)
        for i in range(2):
            assert torch.equal(torch.cat([share[i] for share in shares]), whole(step)[i])
    with pytest.raises(ConfigError, match=r"train\.batch_size=60: must be a multiple of 7"):
        data.Batches(split, 60, 0, 0, 7)


class OfTorchvision:
    """Stands for a data set of torchvision: the attributes that are read of one."""

    def __init__(self, pixels, labels, name):
        self.data = pixels
        setattr(self, name, labels)


@pytest.mark.parametrize(
    ("name", "shape", "attribute"),
    [
        ("svhn", (6, 3, 32, 32), "labels"),
        ("cifar100", (6, 32, 32, 3), "targets"),
        ("fashion_mnist", (6, 28, 28), "targets"),
    ],
)
def test_torchvisions_layouts_all_end_up_channels_first(monkeypatch, name, shape, attribute):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    made = OfTorchvision(pixels, [0, 1, 2, 3, 4, 5], attribute)
    monkeypatch.setattr(data.sources, "_torchvision", lambda *_: (made, made))
    read = data.sources.read_images_and_labels.__wrapped__(name, "nowhere")
    assert read[0].shape[1:] == tuple(config(f"dataset={name}")["shape"]) and read[1].tolist() == [0, 1, 2, 3, 4, 5]
    if name != "svhn":  # which is channels first already
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    assert np.array_equal(read[0].numpy(), pixels)
