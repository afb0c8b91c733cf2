"""A bar on a terminal, plain lines elsewhere."""

import contextlib
import os
import pty
import re
import subprocess
import sys
import termios

import pytest

from tests.conftest import PROJECT
from wdlab import progress


def test_elsewhere_lines_come_now_and_then_with_the_time_left(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with caplog.at_level("INFO", "wdlab"), progress.Progress("a-run", steps=1000, first=100) as shown:
        for step in (200, 300, 400, 1000):
            now[0] += 20
            shown.update(step, {"train/loss": 0.25})
    assert [r.message for r in caplog.records] == ["a-run: step 300 of 1000, train loss 0.25, about 2:20 left"]


def on_a_terminal(*arguments: str) -> tuple[int, str]:
    """Exit code and what a terminal of 120 columns shows of ``python -m wdlab.train``."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    ended = subprocess.Popen(
        [sys.executable, "-m", "wdlab.train", *arguments], cwd=PROJECT, stderr=terminal, stdout=terminal
    )
    os.close(terminal)
    shown = ""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
        while part := os.read(controller, 10_000).decode(errors="replace"):
            shown += part
    os.close(controller)
    return ended.wait(), shown


def test_a_terminal_shows_a_bar_with_an_eta(tmp_path):
    code, shown = on_a_terminal("train.steps=400", "train.log_every=10", "logger=disabled", f"paths.runs={tmp_path}")
    assert code == 0 and "digits-mlp-sgd-none" in shown and "/400" in shown and "step/s" in shown


@pytest.mark.parametrize("launcher", ["local", "joblib"])
def test_a_sweep_on_a_terminal_shows_one_bar_and_a_line_per_run(tmp_path, launcher):
    overrides = ["seed=0,1,2", "train.steps=300", "train.log_every=10", "logger=disabled", f"paths.runs={tmp_path}"]
    code, shown = on_a_terminal("-m", f"hydra/launcher={launcher}", *overrides)
    assert code == 0 and "3 runs:" in shown and "/900" in shown and "sweep: 3 done" in shown
    assert len(re.findall(r"digits-mlp-sgd-none-\w+: done", shown)) == 3 and "started" not in shown


@pytest.mark.parametrize(("seconds", "shown"), [(5, "0:05"), (65.4, "1:05"), (3700, "1:01:40")])
def test_clock(seconds, shown):
    assert progress.clock(seconds) == shown
