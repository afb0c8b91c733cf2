"""The local table, and W&B as a mirror that may fail but never stops a run."""

import builtins
import json
import subprocess
import sys
import time

import pytest

from tests.conftest import PROJECT
from wdlab import session
from wdlab.records import recorder, wandb_mirror
from wdlab.records.directory import RunDirectory


class Spy(wandb_mirror.Mirror):
    def __init__(self):
        self.rows = []

    def log(self, row):
        self.rows.append(dict(row))


def test_rows_are_appended_and_mirrored(tmp_path):
    spy = Spy()
    records = recorder.Recorder(tmp_path / "metrics.jsonl", 0, spy)
    records.log({"step": 0, "train/loss": 2.5})
    records.log({"step": 1, "train/loss": float("nan"), "norm/path": float("inf")})
    records.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == spy.rows == [{"step": 0, "train/loss": 2.5}, {"step": 1, "train/loss": None, "norm/path": None}]


def test_resuming_keeps_the_log_lines_before_the_checkpoint_and_mirrors_them_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = recorder.Recorder(path, 0, wandb_mirror.Mirror())
    first.log({"step": 0})
    kept = first.sync()
    first.log({"step": 1})
    first.close()
    spy = Spy()
    again = recorder.Recorder(path, kept, spy)
    assert again.last == {"step": 0} and spy.rows == [{"step": 0}]
    again.log({"step": 1})
    again.close()
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'


def test_disabled_never_imports_wandb(tmp_path):
    code = (
        "import sys; from wdlab import train\nfrom wdlab.records.identity import compose_config\n"
        f"train.run(compose_config(['logger=disabled', 'train.steps=2', 'paths.runs={tmp_path}']))\n"
        "sys.exit('wandb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0


def test_offline_leaves_a_run_that_wandb_sync_accepts(compose, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")  # the config decides, and no account is needed
    config = compose("logger=offline")
    assert session.run(config) == "done"
    directory = RunDirectory.of(config)
    (offline,) = directory.path.glob("wandb/offline-run-*")
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(offline)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0 and "Would sync 1 run" in answer.stdout + answer.stderr
    (stored,) = offline.glob("*.wandb")
    content = stored.read_bytes()
    for line in directory.metrics.read_text().splitlines():
        loss = json.loads(line)["train/loss"]
        assert str(loss).encode() in content  # every row is there, values as recorded


@pytest.mark.parametrize("moment", ["import", "init", "log", "finish"])
def test_a_wandb_that_fails_stops_nothing(compose, monkeypatch, caplog, moment):
    class Run:
        step = 0

        def log(self, *_, **__):
            if moment == "log":
                raise OSError("disk full")

        def finish(self, **_):
            if moment == "finish":
                raise OSError("disk full")

    def init(**_):
        if moment == "init":
            raise OSError("disk full")
        return Run()

    import wandb

    real_import = builtins.__import__

    def failing_import(name, *arguments, **options):
        if name == "wandb" and moment == "import":
            raise ImportError("no wandb here")
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(builtins, "__import__", failing_import)
    config = compose("logger=offline")
    assert session.run(config) == "done"
    assert sum("W&B stopped" in record.message for record in caplog.records) == 1
    directory = RunDirectory.of(config)
    assert len(directory.metrics.read_text().splitlines()) == 3


def test_online_without_a_network_continues_within_seconds(compose, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_mirror, "SECONDS_TO_START", 2)
    began = time.monotonic()
    assert session.run(compose("logger=online")) == "done"
    assert time.monotonic() - began < 60  # of W&B's own, 90 would pass before the first step
    (message,) = [record.message for record in caplog.records if "W&B stopped" in record.message]
    assert "\n" not in message and "the run and its local records go on" in message


def test_online_without_an_account_continues_without_a_prompt(shell, tmp_path):
    environment = {"WANDB_API_KEY": "", "HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    ended = shell("logger=online", "train.steps=2", "runtime=cpu", env=environment, stdin=subprocess.DEVNULL)
    assert ended.returncode == 0, ended.stderr
    assert "W&B stopped" in ended.stdout
