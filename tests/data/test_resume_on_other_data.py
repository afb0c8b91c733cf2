"""A run goes on, and is measured, on the data that it was begun on, or is refused."""

import json
import shutil

import pytest
import torch

from wdlab import data, evaluate, loop, session
from wdlab.errors import CheckpointError
from wdlab.interpolations import plain
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.sweeps import stacks
from wdlab.validation import check_config

TEXT = (
    *("dataset=tinyshakespeare", "dataset.shape=[16]", "dataset.classes=8", "dataset.val_size=200", "model=gpt"),
    *("model.depth=1", "model.heads=1", "train.batch_size=4"),
)


@pytest.fixture
def texts(tiny_data, tmp_path):
    """Two folders with a text each, of the same characters."""
    text = (tiny_data / "tinyshakespeare.txt").read_text()
    for name, content in (("one", text), ("two", text[::-1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tinyshakespeare.txt").write_text(content)
    return tmp_path


@pytest.fixture
def interrupted(monkeypatch):
    """Begin a run, and stop it after its first step."""

    def _interrupted(config):
        with monkeypatch.context() as patch:
            fit = loop.fit
            patch.setattr(loop, "fit", lambda *arguments: fit(*arguments[:-1], lambda: True))
            with pytest.raises(KeyboardInterrupt):
                session.run(config)
        return RunDirectory.of(config)

    return _interrupted


def told(texts):
    """What must be said, with the key, the value, and what is allowed."""
    return rf"was begun on other data than paths\.data={texts}/two holds now \(dataset=tinyshakespeare, .*give it that"


def test_a_run_is_not_resumed_on_other_data(compose, texts, interrupted):
    one, two = (compose(*TEXT, f"paths.data={texts / name}") for name in ("one", "two"))
    directory = interrupted(one)
    before = {path.name: path.read_bytes() for path in directory.path.iterdir()}
    with pytest.raises(CheckpointError, match=told(texts)):
        session.run(two)
    assert {path.name: path.read_bytes() for path in directory.path.iterdir()} == before
    with pytest.raises(CheckpointError, match=told(texts)):  # as a sweep does before its first run
        check_config(two)
    assert session.run(one) == "done"


def test_the_same_data_elsewhere_is_the_same(compose, texts, interrupted):
    shutil.copytree(texts / "one", texts / "moved")
    interrupted(compose(*TEXT, f"paths.data={texts / 'one'}"))
    assert session.run(compose(*TEXT, f"paths.data={texts / 'moved'}")) == "done"


@pytest.mark.parametrize("lost", ["provenance.json", "in the checkpoint"])
def test_either_record_of_the_data_is_enough(compose, texts, interrupted, lost):
    one, two = (compose(*TEXT, f"paths.data={texts / name}") for name in ("one", "two"))
    directory = interrupted(one)
    if lost == "provenance.json":
        (directory.path / lost).unlink()
    else:  # as written before checkpoints had it
        state = torch.load(directory.checkpoint, weights_only=True)
        assert (
            state.pop("data_checksum") == json.loads((directory.path / "provenance.json").read_text())["data_checksum"]
        )
        torch.save(state, directory.checkpoint)
    with pytest.raises(CheckpointError, match=told(texts)):
        session.run(two)
    assert session.run(one) == "done"


def test_a_run_without_a_checkpoint_begins_anew_on_any_data(compose, texts, interrupted):
    directory = interrupted(compose(*TEXT, f"paths.data={texts / 'one'}"))
    directory.checkpoint.unlink()
    assert session.run(compose(*TEXT, f"paths.data={texts / 'two'}")) == "done"
    recorded = checkpoint.load_or_raise(directory)["data_checksum"]
    assert recorded == directory.read("provenance.json")["data_checksum"]
    assert recorded == data.checksum(compose(*TEXT)["dataset"], texts / "two")


def test_a_finished_run_is_not_evaluated_on_other_data(compose, texts):
    config = compose(*TEXT, f"paths.data={texts / 'one'}")
    session.run(config)
    folder = RunDirectory.of(config).path
    assert evaluate.evaluate(folder, [f"paths.data={texts / 'one'}"])["step"] == 20
    with pytest.raises(CheckpointError, match=told(texts)):
        evaluate.evaluate(folder, [f"paths.data={texts / 'two'}"])


def test_a_run_of_a_stack_is_not_resumed_on_other_data(compose, tiny_data, tmp_path, interrupted, monkeypatch):
    mnist = ("dataset=mnist", "dataset.val_size=12", "train.batch_size=8")
    configs = [compose(*mnist, f"seed={seed}", f"paths.data={tiny_data}") for seed in range(3)]
    directory = interrupted(configs[1])
    (tmp_path / "other" / "mnist").mkdir(parents=True)
    for part, other in (("train", "test"), ("test", "train")):  # the two sets have changed places
        shutil.copy(tiny_data / "mnist" / f"{part}.parquet", tmp_path / "other" / "mnist" / f"{other}.parquet")
    for config in configs:
        config["paths"]["data"] = str(tmp_path / "other")
    jobs = [stacks.StackCandidate([], plain(config), RunDirectory.of(config)) for config in configs]
    stacks.train_stack(jobs)
    assert [job.outcome for job in jobs] == ["done", None, "done"]
    assert "was begun on other data than" in jobs[1].reason
    assert directory.last_step == 1 or directory.last_step == 0
    with pytest.raises(CheckpointError, match="was begun on other data than"):
        session.run(configs[1])
