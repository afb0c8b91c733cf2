"""Splits, sources and batches."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from wdlab import data
from wdlab.errors import ConfigError, DataError
from wdlab.runs import compose

CPU = torch.device("cpu")


def config(*overrides: str):
    return compose(overrides)["dataset"]


def test_digits_are_split_normalized_and_the_same_every_time():
    digits = data.load(config("dataset=digits"), "nowhere", CPU)
    assert [len(s) for s in (digits.train, digits.val, digits.test)] == [1200, 238, 359]
    assert digits.train.inputs.shape == (1200, 1, 8, 8) and digits.train.inputs.dtype == torch.float32
    assert abs(digits.train.inputs.mean()) < 0.02 and abs(digits.train.inputs.std() - 1) < 0.02
    again = data.load(config("dataset=digits"), "nowhere", CPU)
    assert torch.equal(digits.train.inputs, again.train.inputs) and digits.checksum == again.checksum
    other = data.load(config("dataset=digits", "dataset.split_seed=1"), "nowhere", CPU)
    assert not torch.equal(digits.train.labels, other.train.labels)
    assert torch.equal(digits.test.inputs, other.test.inputs)


def test_per_class_keeps_that_many_training_examples_of_each_class():
    few = data.load(config("dataset=digits", "dataset.per_class=7"), "nowhere", CPU)
    assert few.train.labels.bincount().tolist() == [7] * 10 and len(few.val) == 238


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
    assert torch.equal(seen.sum(dim=(1, 2, 3)).sort().values, split.inputs.sum(dim=(1, 2, 3)).sort().values)


def test_a_batch_larger_than_the_training_set_is_refused():
    split = data.load(config("dataset=digits"), "nowhere", CPU).train
    with pytest.raises(ConfigError, match=r"train\.batch_size=1201: must be between 1 and 1200"):
        data.Batches(split, 1201, seed=0)


def png(pixels: np.ndarray) -> dict:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def hub_folder(root, size: int, count: int = 30):
    (root / "mnist").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)
    table = pd.DataFrame({"image": [png(p) for p in pixels], "label": np.arange(count) % 10})
    for part in ("train", "test"):
        table.to_parquet(root / "mnist" / f"{part}.parquet")
    return pixels


def test_the_hub_layout_is_read_losslessly(tmp_path):
    pixels = hub_folder(tmp_path, 28)
    loaded = data.load(config("dataset=mnist", "dataset.val_size=5"), tmp_path, CPU)
    assert len(loaded.train) == 25 and len(loaded.val) == 5
    restored = (loaded.test.inputs * 0.3081 + 0.1307) * 255
    assert torch.allclose(restored[:, 0], torch.from_numpy(pixels).float(), atol=1e-3)


def test_data_of_another_shape_than_configured_is_refused(tmp_path):
    hub_folder(tmp_path, 27)
    with pytest.raises(DataError, match=r"holds images \(1, 27, 27\) in 10 classes, expected \(1, 28, 28\)"):
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
    pixels = torch.cat([loaded.train.inputs, loaded.val.inputs])
    assert abs(pixels.mean()) < 1e-3 and abs(pixels.std() - 1) < 1e-3
    assert loaded.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_the_mnist_subset_has_a_hundred_images_per_class(shared_data):
    loaded = data.load(config("dataset=mnist_subset"), shared_data, CPU)
    assert loaded.train.labels.bincount().tolist() == [100] * 10 and len(loaded.test) == 10_000
