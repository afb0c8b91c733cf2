"""Evaluation from a checkpoint: the numbers of the log, without training; and what pruning makes of them."""

import json
import sys

import pytest
import torch

from tests.test_train import TINY_CIFAR10, rows
from wdlab import evaluate, loop, session
from wdlab.errors import CheckpointError, ConfigError
from wdlab.footprint import footprints
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory


def folder_of(config):
    return RunDirectory.of(config).path


@pytest.fixture
def no_training(monkeypatch):
    """Whatever trains from here on fails the test."""
    return lambda: monkeypatch.setattr(loop, "fit", lambda *_, **__: pytest.fail("trained"))


@pytest.mark.parametrize("choice", ["regularizer=pathprox", f"{TINY_CIFAR10} model=resnet8 train.batch_size=12"])
def test_it_gives_the_numbers_of_the_last_log_line(compose, no_training, tiny_data, choice):
    config = compose(*choice.split(), f"paths.data={tiny_data}")
    session.run(config)
    no_training()
    found = evaluate.evaluate(folder_of(config), ["runtime.device=cpu", f"paths.data={tiny_data}"])
    last = rows(config)[-1]
    assert found["step"] == 20 and found["metrics"].keys() <= last.keys()
    assert {"train/loss", "test/accuracy", "norm/weight_l2", "objective/total"} <= found["metrics"].keys()
    for key, value in found["metrics"].items():
        assert value == pytest.approx(last[key], rel=1e-6), key


def test_an_interrupted_run_can_be_evaluated_too(compose, monkeypatch):
    config = compose("runtime.checkpoint_seconds=0")
    fit = loop.fit
    monkeypatch.setattr(loop, "fit", lambda *arguments: fit(*arguments[:-1], lambda: True))
    with pytest.raises(KeyboardInterrupt):
        session.run(config)
    assert evaluate.evaluate(folder_of(config), [])["step"] == 1


def test_pruning_keeps_the_metrics_and_shrinks_the_network(compose):
    config = compose("regularizer=pathprox", "regularizer.strength=0.1", "model.width=32", "train.steps=60")
    session.run(config)
    found = evaluate.evaluate(folder_of(config), [], prune=True)
    assert found["network"] == "as trained"
    whole, pruned = found["metrics"], found["pruned"]["metrics"]
    assert 0 < whole["sparsity/active_units"] < 1
    for key in ("train/loss", "val/loss", "test/loss", "test/accuracy", "objective/path_norm"):
        assert pruned[key] == pytest.approx(whole[key], rel=1e-5), key
    before, after = found["footprint"], found["pruned"]["footprint"]
    assert after.parameters < before.parameters and after.bytes < before.bytes and after.latency_ms > 0
    assert sum(p.numel() for p in found["pruned"]["model"].parameters()) == after.parameters


def test_the_latency_is_that_of_the_run_s_precision(compose, monkeypatch):
    config = compose("regularizer=pathprox", "runtime.precision=bf16")
    session.run(config)
    seen, timed = [], footprints
    monkeypatch.setattr(evaluate, "footprints", lambda *a: seen.append(torch.is_autocast_enabled("cpu")) or timed(*a))
    evaluate.evaluate(folder_of(config), ["runtime.device=cpu"], prune=True)
    assert seen == [True]


def test_the_command_prints_a_table_or_json_and_saves_the_network(compose, tmp_path, monkeypatch, capsys):
    config = compose("regularizer=pathprox", "regularizer.strength=0.1", "train.steps=60")
    session.run(config)
    capsys.readouterr()
    saved = tmp_path / "made" / "small.pt"
    monkeypatch.setattr(sys, "argv", ["evaluate", str(folder_of(config)), "--prune", "--save", str(saved)])
    evaluate.main()
    table = capsys.readouterr().out
    assert all(word in table for word in ("as trained", "pruned", "test/accuracy", "parameters", "latency_ms"))
    assert table.endswith(f"saved {saved}\n") and "no dead units" not in table
    network = torch.load(saved, weights_only=False)
    assert network(torch.randn(3, 1, 8, 8)).shape == (3, 10)
    monkeypatch.setattr(sys, "argv", ["evaluate", str(folder_of(config)), "--prune", "--json"])
    evaluate.main()
    found = json.loads(capsys.readouterr().out)
    assert found["pruned"]["metrics"]["test/accuracy"] == found["metrics"]["test/accuracy"]
    assert found["pruned"]["footprint"]["parameters"] == sum(p.numel() for p in network.parameters())


def test_what_cannot_be_evaluated_is_told_in_one_line(compose, tmp_path, monkeypatch, capsys):
    config = compose()
    session.run(config)
    with pytest.raises(ConfigError, match=r"optimizer\.lr=3: only runtime\. and paths\.data= can be set"):
        evaluate.evaluate(folder_of(config), ["optimizer.lr=3"])
    for arguments, told in (
        ([str(tmp_path / "nowhere")], "nowhere: is no run, it has no config.yaml"),
        ([str(folder_of(config)), "runtime.precision=fp8"], "runtime.precision=fp8: must be one of fp32, tf32, bf16"),
        ([str(folder_of(config)), "--save", str(tmp_path)], "is a folder, must be a file"),
        ([str(folder_of(config)), "runtime.precison=fp32"], "runtime.precison: unknown key; did you mean precision?"),
    ):
        monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
        with pytest.raises(SystemExit, match="2"):
            evaluate.main()
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and told in lines[0]
    monkeypatch.setattr(sys, "argv", ["evaluate"])
    with pytest.raises(SystemExit, match="2"):
        evaluate.main()
    told = capsys.readouterr().err
    assert told.startswith("usage: python -m wdlab.evaluate ") and told.endswith("are required: run\n")
    monkeypatch.setattr(sys, "argv", ["evaluate", str(folder_of(config)), "--prune"])
    evaluate.main()
    assert capsys.readouterr().out.endswith("\nno dead units\n")
    checkpoint_file = RunDirectory.of(config).checkpoint
    checkpoint_file.unlink()
    with pytest.raises(CheckpointError, match="has no checkpoint to evaluate"):
        evaluate.evaluate(folder_of(config), [])
    assert checkpoint.load(RunDirectory.of(config)) is None
