"""A run from config to records: the files it leaves, the work it skips, its resume and its end."""

import json
import os
import signal

import pytest
import torch

from wdlab import data, loop, session
from wdlab.build import build_parts
from wdlab.errors import CheckpointError, RunFailed
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import run_name

STEP_METRICS = {
    *("gradient/loss_norm", "gradient/penalty_norm", "gradient/coherence", "update/relative"),
    *("scale_invariant/gradient_times_weight", "scale_invariant/effective_lr", "scale_invariant/angular_update"),
}
METRICS = {
    *("train/loss", "train/accuracy", "val/loss", "val/accuracy", "test/loss", "test/accuracy"),
    *("objective/weight_decay", "objective/path_norm", "objective/total"),
    *("norm/weight_l2", "norm/weight_l1", "norm/path", "sparsity/weights", "sparsity/active_units"),
    *STEP_METRICS,
}


def rows(config) -> list[dict]:
    return [json.loads(line) for line in RunDirectory.of(config).metrics.read_text().splitlines()]


def test_a_run_leaves_its_files_and_every_metric(compose):
    config = compose("regularizer=pathprox")
    assert session.run(config) == "done"
    directory = RunDirectory.of(config)
    expected = {"config.yaml", "metrics.jsonl", "summary.json", "checkpoint.pt", "provenance.json", "status.json"}
    assert expected <= {path.name for path in directory.path.iterdir()}
    log = rows(config)
    assert [row["step"] for row in log] == [0, 10, 20]
    assert log[-1].keys() == METRICS | {"step", "epoch", "lr", "strength"}
    assert METRICS - log[0].keys() == STEP_METRICS
    assert log[-1]["epoch"] == pytest.approx(20 / 18) and log[-1]["strength"] == 1e-4 and log[-1]["lr"] == 0.1
    assert json.loads((directory.path / "summary.json").read_text())["train/loss"] == log[-1]["train/loss"]


def test_the_objectives_are_the_sums_of_their_parts(compose):
    config = compose("regularizer=l2", "regularizer.strength=0.01")
    session.run(config)
    row = rows(config)[-1]
    assert row["objective/weight_decay"] == pytest.approx(row["train/loss"] + 0.005 * row["norm/weight_l2"] ** 2)
    assert row["objective/total"] == pytest.approx(row["objective/weight_decay"], rel=1e-6)
    assert row["objective/path_norm"] == pytest.approx(row["train/loss"] + 0.01 * row["norm/path"])
    config = compose("regularizer=pathprox", "regularizer.strength=0.01")
    session.run(config)
    row = rows(config)[-1]
    assert row["objective/total"] == pytest.approx(row["objective/path_norm"], rel=1e-6)


def test_cheap_and_whole_split_metrics_have_their_own_cadence(compose):
    config = compose("train.log_every=5", "train.eval_every=20")
    session.run(config)
    assert [(r["step"], "train/loss" in r) for r in rows(config)] == [
        *((0, True), (5, False), (10, False), (15, False), (20, True))
    ]


@pytest.mark.parametrize("fused", ["auto", "never"])
def test_training_equals_a_bare_torch_loop_bit_for_bit(fused, compose):
    config = compose("regularizer=none", "optimizer.momentum=0.9", f"runtime.fused={fused}")
    session.run(config)
    model = build_parts(config).model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused == "auto")
    loaded = data.load(config["dataset"], "", torch.device("cpu"))
    batches = data.Batches(loaded.train, 64, seed=0)
    for step in range(20):
        inputs, labels = batches(step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    saved = checkpoint.load(RunDirectory.of(config))["model"]
    assert all(torch.equal(saved[key], value) for key, value in model.state_dict().items())


def test_a_finished_run_is_not_trained_again(compose, monkeypatch):
    config = compose()
    session.run(config)
    monkeypatch.setattr(loop, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert session.run(config) == "done"


@pytest.mark.parametrize(
    "choice",
    [
        "regularizer=pathprox optimizer=adam",
        "regularizer=scheduled optimizer=adam",
        "regularizer=coherent optimizer=adam regularizer.route=separate",
        "regularizer=pnorm optimizer=adam regularizer/over_time=gradient_scale",
        "regularizer=l1 regularizer/over_time=coherent",
        "regularizer=early regularizer.over_time.epochs=null regularizer.over_time.steps=9",
        "optimizer=adams",
        "optimizer=padam",
        "optimizer=sgds",
    ],
)
def test_an_interrupted_run_ends_as_if_it_had_not_been(compose, monkeypatch, choice):
    check_resume(compose, monkeypatch, choice.split())


TINY_CIFAR10 = "dataset=cifar10 dataset.val_size=10"
TINY_TEXT = "dataset=tinyshakespeare dataset.classes=8 dataset.shape=[16] dataset.val_size=100"


@pytest.mark.parametrize(
    "choice",
    [
        f"{TINY_CIFAR10} model=resnet8",
        f"{TINY_CIFAR10} model=resnet18 optimizer.momentum=0.9 dataset.augment.padding=reflect",
        f"{TINY_CIFAR10} model=vgg11 regularizer=pathprox train.clip_norm=1.0",
        f"{TINY_CIFAR10} model=vgg13_bn optimizer=adams dataset.augment.rotation=10",
        f"{TINY_CIFAR10} model=mlp dataset.augment=null dataset.label_noise=0.2 dataset.train_size=45",
        f"{TINY_CIFAR10} model=resnet8 dataset.augment.crop=null regularizer=l2 train.average_decay=0.9",
        f"{TINY_TEXT} model=gpt model.dropout=0.1 optimizer=adamw",
        f"{TINY_TEXT} model=gpt model.activation=relu dataset.shift=null optimizer=padam",
    ],
)
def test_every_kind_of_network_and_data_resumes_exactly(compose, monkeypatch, tiny_data, choice):
    sizes = ["model.width=8", "train.batch_size=12", f"paths.data={tiny_data}"]
    check_resume(compose, monkeypatch, [*choice.split(), *sizes])


def check_resume(compose, monkeypatch, choice: list[str]) -> None:
    options = [*choice, "lr_schedule=cosine", "runtime.checkpoint_seconds=0"]
    options += ["runtime.threads=1"]  # else a new run takes as many as the machine has free, which rounds differently
    whole, parts = compose(*options, runs_in="whole"), compose(*options, runs_in="parts")
    session.run(whole)
    sessions = iter([3, 8, 11])  # steps to make before a stop is requested
    fit = loop.fit

    def stopping_fit(*arguments):
        left = next(sessions, None)
        polls = iter(range(1000))
        return fit(*arguments[:-1], lambda: left is not None and next(polls) + 1 >= left)

    monkeypatch.setattr(loop, "fit", stopping_fit)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            session.run(parts)
        assert RunDirectory.of(parts).status == "interrupted"
    assert session.run(parts) == "done"
    same_ending(RunDirectory.of(whole), RunDirectory.of(parts))


def same_ending(one: RunDirectory, other: RunDirectory) -> None:
    assert one.metrics.read_bytes() == other.metrics.read_bytes()
    states = [checkpoint.load(d) for d in (one, other)]
    assert states[0].keys() == states[1].keys()
    for part in states[0].keys() & {"model", "optimizer", "regularizer", "rng", "average"}:
        assert bitwise_equal(states[0][part], states[1][part])


def bitwise_equal(one, other) -> bool:
    """Return True if two nested states hold the same tensors and values."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(bitwise_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(bitwise_equal(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def test_an_error_is_recorded_and_the_run_retried(compose, monkeypatch):
    config = compose()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", lambda *_: 1 / 0)
        with pytest.raises(RunFailed, match="failed, ZeroDivisionError"):
            session.run(config)
    status = RunDirectory.of(config).read("status.json")
    assert status["status"] == "failed" and "Traceback" in status["traceback"]
    assert session.run(config) == "done"


def test_divergence_ends_the_run_with_its_records(compose):
    config = compose("optimizer.lr=1e30", "train.log_every=1")
    with pytest.raises(RunFailed, match="diverged, the loss was not finite"):
        session.run(config)
    directory = RunDirectory.of(config)
    assert directory.status == "diverged" and directory.finished
    log = rows(config)  # still JSON: what is not finite is null
    assert log[0]["train/loss"] > 0 and log[-1]["norm/weight_l2"] is None
    with pytest.raises(RunFailed, match="diverged"):
        session.run(config)


def test_a_blow_up_in_the_very_last_update_is_divergence_too(compose):
    config = compose("optimizer.lr=1e30", "train.steps=1", "train.log_every=1", "train.eval_every=1")
    with pytest.raises(RunFailed, match="diverged, the loss was not finite at step 1"):
        session.run(config)
    assert RunDirectory.of(config).status == "diverged"


@pytest.mark.parametrize("log_every", [1, 20])
def test_a_run_killed_while_it_diverged_still_ends_as_diverged(compose, log_every):
    config = compose("optimizer.lr=1e30", f"train.log_every={log_every}", f"train.eval_every={log_every}")
    for _ in range(2):
        with pytest.raises(RunFailed, match="diverged"):
            session.run(config)
        records = RunDirectory.of(config).metrics.read_bytes()
        RunDirectory.of(config).write_status("running")  # as if killed before it recorded the outcome
    with pytest.raises(RunFailed, match="diverged"):
        session.run(config)
    assert RunDirectory.of(config).metrics.read_bytes() == records


def test_a_signal_after_the_last_step_still_stops_a_sweep(compose, monkeypatch):
    config = compose()
    write = RunDirectory.write

    def interrupting_write(directory, name, content):
        if name == "summary.json":
            os.kill(os.getpid(), signal.SIGINT)
        write(directory, name, content)

    monkeypatch.setattr(RunDirectory, "write", interrupting_write)
    with pytest.raises(KeyboardInterrupt):
        session.run(config)
    assert RunDirectory.of(config).status == "done"


def test_a_run_that_another_process_has_is_left_alone(compose):
    config = compose()
    directory = RunDirectory.of(config)
    directory.create()
    with directory.lock():
        assert session.run(config) == "locked"
    assert session.run(config) == "done"


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "of another run"])
def test_a_damaged_checkpoint_is_reported_and_nothing_is_lost(compose, damage):
    config = compose("runtime.checkpoint_seconds=0")
    session.run(config)
    directory = RunDirectory.of(config)
    records = directory.metrics.read_bytes()
    directory.write_status("running")
    whole = directory.checkpoint.read_bytes()
    if damage == "of another run":
        torch.save({"run": "another"}, directory.checkpoint)
    else:
        directory.checkpoint.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"x"}[damage])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: (damaged|belongs to run another)"):
        session.run(config)
    assert directory.metrics.read_bytes() == records
    directory.checkpoint.unlink()
    assert session.run(config) == "done"  # from checkpoint.previous.pt
    assert directory.metrics.read_bytes() == records


def test_records_that_a_checkpoint_counts_on_must_be_there(compose):
    config = compose("runtime.checkpoint_seconds=0")
    session.run(config)
    directory = RunDirectory.of(config)
    directory.write_status("running")
    directory.metrics.write_bytes(directory.metrics.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="its checkpoint was written at"):
        session.run(config)


@pytest.mark.parametrize("garbage", [b"\xff\x00garbage", b'{"step": 10, "tra', b"3", b""])
def test_a_damaged_line_in_the_middle_is_reported_and_nothing_is_touched(compose, garbage):
    config = compose("runtime.checkpoint_seconds=0", "train.log_every=5")
    session.run(config)
    directory = RunDirectory.of(config)
    directory.write_status("running")
    lines = directory.metrics.read_bytes().split(b"\n")
    lines[2] = garbage.ljust(len(lines[2]))
    damaged = b"\n".join(lines)
    directory.metrics.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 3 is damaged; delete .* to start again"):
        session.run(config)
    assert directory.metrics.read_bytes() == damaged and directory.status == "failed"


def test_a_half_written_line_is_cut_off(compose):
    config = compose("runtime.checkpoint_seconds=0")
    session.run(config)
    directory = RunDirectory.of(config)
    records = directory.metrics.read_bytes()
    directory.write_status("running")
    with directory.metrics.open("ab") as file:
        file.write(b'{"step": 30, "tra')
    assert session.run(config) == "done"
    assert directory.metrics.read_bytes() == records


def test_clipping_bounds_the_gradient_of_the_loss_alone(compose):
    clipped = ["train.clip_norm=1e-3", "optimizer.lr=1.0", "train.log_every=1"]
    config = compose(*clipped)
    session.run(config)
    steps = rows(config)[1:]
    assert all(row["gradient/loss_norm"] > 0.1 for row in steps)  # before clipping
    moved = compose(*clipped, "train.steps=1", "train.eval_every=1")
    model = build_parts(moved)[0]
    before = [p.detach().clone() for p in model.parameters()]
    session.run(moved)
    after = checkpoint.load(RunDirectory.of(moved))["model"].values()
    change = torch.stack([(a - b).norm() for a, b in zip(after, before, strict=True)]).norm()
    assert change.item() == pytest.approx(1e-3, rel=1e-3)


def test_another_precision_or_layout_is_reported_on_resume(compose, caplog):
    config = compose("train.steps=10", "runtime.checkpoint_seconds=0")
    session.run(config)
    RunDirectory.of(config).write_status("running")
    config.runtime.compile = False
    config.runtime.threads = 1 if torch.get_num_threads() > 1 else 2
    with caplog.at_level("WARNING", logger="wdlab"):
        session.run(config)
    assert "resumed on another machine or setting; equal up to rounding only" in caplog.text
    sessions = json.loads((RunDirectory.of(config).path / "provenance.json").read_text())["sessions"]
    keys = {"device", "threads", "precision", "matmul", "channels_last", "compile", "processes", "fused"}
    assert len(sessions) == 2 and all(keys <= session.keys() for session in sessions)
    assert sessions[0]["threads"] != sessions[1]["threads"]


def test_networks_with_convolutions_lie_channels_last_unless_set_otherwise(compose, tiny_data):
    base = [*TINY_CIFAR10.split(), "model=resnet8", f"paths.data={tiny_data}", "train.batch_size=12"]
    outcomes = {}
    for choice in ("auto", "never"):
        config = compose(*base, f"runtime.channels_last={choice}", runs_in=choice)
        session.run(config)
        sitting = RunDirectory.of(config).read("provenance.json")["sessions"][0]
        assert sitting["channels_last"] == (choice == "auto")
        outcomes[choice] = rows(config)[-1]["train/loss"]
    assert outcomes["auto"] == pytest.approx(outcomes["never"], rel=1e-3)  # another rounding, and no more than that


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_on_cuda_agrees_with_the_cpu(compose):
    here, there = compose("regularizer=pathprox"), compose("regularizer=pathprox", "runtime=gpu", runs_in="gpu")
    session.run(here)
    session.run(there)
    for one, other in zip(rows(here), rows(there), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_bf16_is_another_run_and_trains(compose):
    fp32, bf16 = compose(), compose("runtime.precision=bf16")
    assert run_name(fp32) != run_name(bf16)
    assert session.run(bf16) == "done"


def test_the_log_has_the_strength_in_force(compose):
    steps = ["train.steps=6", "train.log_every=1", "train.eval_every=6"]
    early = compose("regularizer=l2", "regularizer/over_time=early", "regularizer.over_time.epochs=null", *steps,
                    "regularizer.over_time.steps=3")  # fmt: skip
    session.run(early)
    assert [row["strength"] for row in rows(early)] == [1e-4, 1e-4, 1e-4, 1e-4, 0.0, 0.0, 0.0]
    scheduled = compose("regularizer=scheduled", "optimizer=adam", *steps)
    session.run(scheduled)
    strengths = [row["strength"] for row in rows(scheduled)]
    assert strengths[0] == 5e-4 and all(s > 5e-4 for s in strengths[1:])  # the gradients of a new network are below 1
