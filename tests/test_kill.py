"""``kill -9`` at random moments, for real: the same command ends with bitwise the same weights and records."""

import random
import signal
import subprocess
import sys
import time

from tests.conftest import PROJECT
from tests.test_train import same_ending
from wdlab import checkpoint, runs

KILLS = 5
OVERRIDES = (
    *("dataset=digits", "model=mlp", "model.width=32", "regularizer=pathprox", "optimizer.momentum=0.9"),
    *("train.steps=6000", "train.log_every=50", "train.eval_every=200", "lr_schedule=cosine"),
    *("runtime=cpu", "runtime.checkpoint_seconds=0.02", "runtime.threads=1"),
)


def command(folder) -> list[str]:
    return [sys.executable, "-m", "wdlab.train", *OVERRIDES, f"paths.runs={folder}"]


def test_a_polite_end_is_at_a_step_with_a_checkpoint(tmp_path):
    process = subprocess.Popen(
        command(tmp_path), cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert "started" in process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    directory = runs.RunDirectory(tmp_path, runs.identity(runs.compose(OVERRIDES)))
    assert process.returncode == 130 and told.strip() == "interrupted; the same command goes on from here"
    assert directory.status == "interrupted"
    assert checkpoint.load(directory)["step"] >= directory.last_step


def started(folder) -> subprocess.Popen:
    """The command, once it has said that it trains."""
    process = subprocess.Popen(command(folder), cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert "started" in line or "going on at step" in line
    return process


def test_killed_and_resumed_equals_never_stopped(tmp_path):
    process, began = started(tmp_path / "whole"), time.monotonic()
    process.communicate(timeout=300)
    seconds = time.monotonic() - began
    name = runs.identity(runs.compose(OVERRIDES))
    whole, killed = (runs.RunDirectory(tmp_path / part, name) for part in ("whole", "killed"))
    steps = []  # of the newest checkpoint after each kill
    for _ in range(KILLS):
        process = started(tmp_path / "killed")
        time.sleep(random.uniform(0, 0.7 * seconds / KILLS))  # all together less than the run takes
        process.kill()
        process.communicate()
        newest = checkpoint.load(killed)
        steps.append(newest["step"] if newest else 0)
    assert not killed.finished and steps == sorted(steps) and steps[-1] < 6000
    subprocess.run(command(tmp_path / "killed"), cwd=PROJECT, check=True, timeout=300)
    same_ending(whole, killed)
