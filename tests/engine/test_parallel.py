"""One run on two processes, as torchrun starts it: the same steps as one process, recorded once."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import PROJECT
from wdlab.engine import parallel
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import compose_config, run_name

RUN = (
    *("dataset=digits", "model=mlp", "model.width=16", "optimizer.momentum=0.9", "regularizer=pathprox"),
    *("train.steps=30", "train.batch_size=48", "train.log_every=10", "train.eval_every=30", "train.clip_norm=1.0"),
    *("logger=disabled", "runtime=cpu", "runtime.threads=1"),
)


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def torchrun(*arguments: str, cwd) -> subprocess.CompletedProcess:
    command = [*TORCHRUN, "-m", "wdlab.train", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def rank(command, monkeypatch):
    """Run a command line in this process as one of two would, as far as it gets without meeting the other."""

    def _rank(number: int, *arguments: str):
        with monkeypatch.context() as patch:
            for name, value in {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2}.items():
                patch.setenv(name, str(value))
            return command(*arguments)

    return _rank


def test_two_processes_make_the_same_steps_as_one(command, rank, tmp_path):
    one, two = ((*RUN, f"paths.runs={tmp_path / name}") for name in ("one", "two"))
    assert command(*one).returncode == 0
    ended = torchrun(*two, cwd=PROJECT)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(": started") == 1 and ended.stdout.count("records: ") == 1
    name = run_name(compose_config(RUN))
    alone, shared = (RunDirectory(tmp_path / part, name) for part in ("one", "two"))
    assert shared.status == "done" and shared.read("provenance.json")["sessions"][0]["processes"] == 2
    logs = [[json.loads(line) for line in d.metrics.read_text().splitlines()] for d in (alone, shared)]
    assert len(logs[0]) == len(logs[1]) == 4
    for row, other in zip(*logs, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
    weights = [checkpoint.load(d)["model"] for d in (alone, shared)]
    assert all(torch.allclose(weights[0][key], weights[1][key], rtol=1e-4, atol=1e-6) for key in weights[0])
    again = [rank(number, *two) for number in range(2)]
    assert [process.returncode for process in again] == [0, 0]
    assert "finished before, nothing to do" in again[0].stdout and again[1].stdout == ""


def test_a_polite_end_of_torchrun_leaves_a_checkpoint_to_go_on_from(tmp_path):
    long = [*RUN, "train.steps=20000", "train.log_every=10000", "train.eval_every=20000", f"paths.runs={tmp_path}"]
    process = subprocess.Popen([*TORCHRUN, "-m", "wdlab.train", *long], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert "started" in process.stdout.readline()
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    directory = RunDirectory(tmp_path, run_name(compose_config(long)))
    assert directory.status == "interrupted"
    assert 0 < checkpoint.load(directory)["step"] < 20000


def test_what_cannot_be_shared_is_told(rank, tmp_path):
    ended = torchrun(*RUN, "train.batch_size=47", f"paths.runs={tmp_path}", cwd=PROJECT)
    assert ended.returncode != 0
    assert "error: train.batch_size=47: must be a multiple of 2, the processes of torchrun" in ended.stderr
    assert not list(tmp_path.iterdir())
    for ended in (rank(number, "-m", *RUN, "seed=0,1", f"paths.runs={tmp_path}") for number in range(2)):
        assert ended.returncode == 2 and "error: -m: torchrun shares one run between processes" in ended.stderr


def test_without_torchrun_there_is_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert parallel.connect(torch.device("cpu")) is parallel.SINGLE_PROCESS and parallel.broadcast_decision(go=True)
    assert parallel.SINGLE_PROCESS.any_true(True) is True and parallel.SINGLE_PROCESS.any_true(False) is False
    model = torch.nn.Linear(2, 2)
    assert parallel.SINGLE_PROCESS.average_gradients(model, torch.device("cpu")) is model
