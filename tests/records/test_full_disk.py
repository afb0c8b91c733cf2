"""A disk that is full, for real, and a folder that cannot be written: told in one line, nothing recorded is lost."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.test_train import same_ending
from wdlab import session
from wdlab.errors import ConfigError, RunFailed
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.recorder import Recorder

PAGE = 4096
STEPS = ("train.steps=12", "train.log_every=1", "train.eval_every=4", "model.width=16", "runtime.checkpoint_seconds=0")


def mount(folder: Path, *options: str) -> None:
    """A small file system of its own in memory; skips the test where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here; that takes root")


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def disk(tmp_path):
    """A disk of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, f"size={128 * PAGE}")
    yield folder
    unmount(folder)


def leave(disk: Path, pages: int) -> None:
    """Fill a disk up but for some pages."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail
    if free > pages:
        filler.write_bytes(b"x" * PAGE * (free - pages))
    assert os.statvfs(disk).f_bavail == min(free, pages)


def check_what_is_there(directory: RunDirectory) -> None:
    """Everything in a run's directory can be read, and nothing is half written."""
    assert not list(directory.path.glob(".*.tmp"))
    for path in directory.path.glob("*.json"):
        assert json.loads(path.read_text())
    if directory.metrics.exists():
        text = directory.metrics.read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        assert text.endswith("\n") or not text
        assert [row["step"] for row in rows] == list(range(len(rows)))
    if directory.checkpoint.exists() or directory.previous_checkpoint.exists():
        assert checkpoint.load(directory)["records_bytes"] <= directory.metrics.stat().st_size


def test_wherever_the_disk_fills_up_the_run_goes_on_from_there(compose, disk, monkeypatch):
    """With one free page each attempt gets one file further; later attempts have more pages, for the checkpoint."""
    monkeypatch.setattr("wdlab.records.directory.code_version", dict)  # an uncommitted diff may be longer than the disk
    whole, config = compose(*STEPS), compose(*STEPS, f"paths.runs={disk}")
    session.run(whole)
    directory = RunDirectory.of(config)
    stopped_by = set()
    for pages in (0, *[1] * 6, *range(2, 40)):
        leave(disk, pages)
        rows_before = directory.metrics.read_bytes() if directory.metrics.exists() else b""
        kept = checkpoint.load(directory)["records_bytes"] if directory.checkpoint.exists() else 0
        try:
            session.run(config)
            break
        except RunFailed as error:
            told = str(error)
        assert told.startswith(f"{directory.name}: failed, {directory.path}/")
        assert told.endswith(": No space left on device") and "\n" not in told
        stopped_by.add(told.rpartition("/")[2].partition(":")[0])
        check_what_is_there(directory)
        if directory.metrics.exists():
            assert directory.metrics.read_bytes().startswith(rows_before[:kept])
    assert directory.status == "done"
    assert {"config.yaml", "config.json", "provenance.json", "metrics.jsonl", "checkpoint.pt"} <= stopped_by
    same_ending(RunDirectory.of(whole), directory)


@pytest.mark.parametrize("name", ["status.json", "summary.json", "checkpoint.pt", "metrics.jsonl"])
def test_a_disk_that_fills_up_at_a_certain_file(compose, disk, monkeypatch, name):
    """The disk is filled at the moment before the file is written."""
    monkeypatch.setattr("wdlab.records.directory.code_version", dict)
    whole, config = compose(*STEPS), compose(*STEPS, f"paths.runs={disk}")
    session.run(whole)
    directory = RunDirectory.of(config)
    places = {"checkpoint.pt": (checkpoint, "save"), "metrics.jsonl": (Recorder, "log")}
    owner, method = places.get(name, (RunDirectory, "write"))
    real, calls = getattr(owner, method), []

    def on_a_full_disk(first, second, *more):
        calls.append(second)
        if name in ("status.json", "summary.json"):
            if second == name:
                leave(disk, 0)
        elif len(calls) == 7:
            leave(disk, 0)
        return real(first, second, *more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, on_a_full_disk)
        if name == "metrics.jsonl":  # fails at the next page of the table, with part of a line on this one
            patch.setattr(checkpoint, "save", lambda *_: None)
        with pytest.raises(RunFailed, match=f"/{name}: No space left on device"):
            session.run(config)
    check_what_is_there(directory)
    (disk / "filler").unlink()
    assert session.run(config) == "done"
    same_ending(RunDirectory.of(whole), directory)


@pytest.mark.long
def test_a_sweep_on_a_full_disk_names_its_runs_and_finishes_when_there_is_room(shell, disk):
    sweep = ("-m", "seed=0,1,2", *STEPS, "logger=disabled", "runtime.threads=1", f"paths.runs={disk}")
    leave(disk, 12)
    ended = shell(*sweep)
    assert ended.returncode == 1 and ended.stderr == "error: 3 of 3 runs did not end well; see above\n"
    assert ended.stdout.count("No space left on device") == 6  # as it happens, and in the summary
    (disk / "filler").unlink()
    again = shell(*sweep)
    assert again.returncode == 0 and "sweep: 3 done\n" in again.stdout
    assert not [path.name for path in disk.iterdir() if path.name.startswith(".")]


@pytest.mark.long
def test_a_disk_full_of_what_wandb_writes(shell, disk):
    """W&B shares the disk, loses rows in silence, and is mirrored anew by the session that finishes."""
    run = (*STEPS, "logger=offline", "runtime.threads=1", f"paths.runs={disk}")
    leave(disk, 14)
    ended = shell(*run)
    assert ended.returncode == 1, ended.stdout
    assert re.fullmatch(r"error: .*: failed, .*: No space left on device\n", ended.stderr), ended.stderr
    (directory,) = (RunDirectory(disk, path.name) for path in disk.glob("digits-*"))
    check_what_is_there(directory)
    (disk / "filler").unlink()
    again = shell(*run)
    assert again.returncode == 0 and "done after" in again.stdout, again.stderr
    (stored,) = directory.path.glob("wandb/offline-run-*/*.wandb")
    content = stored.read_bytes()
    rows = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    assert len(rows) == 13 and all(str(row["norm/weight_l2"]).encode() in content for row in rows)


def test_a_folder_that_cannot_be_written_is_one_line(compose, disk):
    first, second = compose(f"paths.runs={disk}"), compose(f"paths.runs={disk}", "seed=1")
    session.run(first)
    started = compose(f"paths.runs={disk}", "seed=2")
    RunDirectory.of(started).create()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert session.run(first) == "done"  # there is nothing to write
    for config in (second, started):
        with pytest.raises(ConfigError, match=r"paths\.runs=.*: cannot be written, \[Errno 30\] Read-only file system"):
            session.run(config)


def test_a_file_where_a_folder_should_be_is_one_line(compose, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match=r"paths\.runs=.*taken/runs: cannot be written, "):
        session.run(compose(f"paths.runs={tmp_path / 'taken' / 'runs'}"))
