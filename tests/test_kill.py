"""``kill -9`` at random moments, for real: the same command ends with bitwise the same weights and records."""

import random
import signal
import subprocess
import sys
import time

import pytest

from tests import campaign
from tests.conftest import PROJECT
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import compose_config, run_name

OVERRIDES = (
    *("dataset=digits", "model=mlp", "model.width=32", "regularizer=pathprox", "optimizer.momentum=0.9"),
    *("train.steps=6000", "train.log_every=50", "train.eval_every=200", "lr_schedule=cosine"),
    *("runtime=cpu", "runtime.checkpoint_seconds=0.02", "runtime.threads=1"),
)


def command_of(folder) -> list[str]:
    return [sys.executable, "-m", "wdlab.train", *OVERRIDES, f"paths.runs={folder}"]


def test_a_polite_end_is_at_a_step_with_a_checkpoint(tmp_path):
    process = subprocess.Popen(
        command_of(tmp_path), cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert "started" in process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    directory = RunDirectory(tmp_path, run_name(compose_config(OVERRIDES)))
    assert process.returncode == 130 and told.strip() == "interrupted; the same command resumes from here"
    assert directory.status == "interrupted"
    assert checkpoint.load(directory)["step"] >= directory.last_step


def test_killed_and_resumed_equals_never_stopped(command, tmp_path):
    """The short form of ``make test-faults``: every launcher killed once. What is not killed runs in this process."""
    seed = random.randrange(1000)
    few = {"at_most": 1, "of_each": 2, "lanes": 1}

    def run(target: campaign.Target) -> None:
        words = target.command
        if target.launcher == "joblib":
            campaign.in_a_process(target)
        else:
            assert command(*words[words.index("wdlab.train") + 1 :], "logger=disabled").returncode == 0

    targets = campaign.campaign(tmp_path, kills=len(campaign.LAUNCHERS), seed=seed, minutes=30, run=run, **few)
    assert not any(target.trouble for target in targets), campaign.summary(targets, seed)
    assert {target.launcher for target in targets} == campaign.LAUNCHERS.keys()


@pytest.mark.long
def test_the_workers_of_a_killed_sweep_stop_with_a_checkpoint(tmp_path):
    target = campaign.Target(tmp_path / "runs", "joblib", campaign.JOBS)
    process = target.start("logger=disabled", campaign.KEPT)
    while not any(target.steps):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    limit = time.monotonic() + 60
    while any(directory.is_locked for directory in target.directories) and time.monotonic() < limit:
        time.sleep(0.1)
    states = [directory.status for directory in target.directories]
    assert "interrupted" in states and not {"running", "done", "failed"} & set(states)
