"""A bar on a terminal, plain lines elsewhere."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
import threading

import pytest

from tests.conftest import PROJECT
from wdlab.engine import progress


def test_elsewhere_lines_come_now_and_then_with_the_time_left(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with caplog.at_level("INFO", "wdlab"), progress.Progress("a-run", steps=1000, first=100) as shown:
        for step in (200, 300, 400, 1000):
            now[0] += 20
            shown.update(step, {"train/loss": 0.25})
    assert [r.message for r in caplog.records] == ["a-run: step 300 of 1000, train loss 0.25, about 2:20 left"]


class Terminal:
    """A terminal of 120 columns, and what it shows."""

    def __init__(self) -> None:
        self._controller, self._terminal = pty.openpty()
        termios.tcsetwinsize(self._terminal, (24, 120))
        self._shown = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
            while part := os.read(self._controller, 10_000).decode(errors="replace"):
                self._shown += part

    def shows_of_a_process(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Exit code and what is to be seen of ``python -m wdlab.train`` in a process of its own."""
        environment = os.environ | variables
        environment.pop("OMP_NUM_THREADS", None)
        words = [sys.executable, "-m", "wdlab.train", *arguments]
        streams = {"stdout": self._terminal, "stderr": self._terminal}
        ended = subprocess.run(words, cwd=PROJECT, env=environment, check=False, **streams)
        return ended.returncode, self.closed()

    def shows_of(self, command, *arguments: str) -> tuple[int, str]:
        """The same in this process."""
        file = os.fdopen(os.dup(self._terminal), "w")
        with file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            code = command(*arguments).returncode
        return code, self.closed()

    def closed(self) -> str:
        os.close(self._terminal)
        self._reader.join()
        os.close(self._controller)
        return self._shown


def test_a_terminal_shows_a_bar_with_an_eta(command, tmp_path):
    short = ("train.steps=400", "train.log_every=10", "logger=disabled", f"paths.runs={tmp_path}")
    code, shown = Terminal().shows_of(command, *short)
    assert code == 0 and "digits-mlp-sgd-none" in shown and "/400" in shown and "step/s" in shown


def test_a_sweep_on_a_terminal_shows_one_bar_and_a_line_per_run_and_joblib_gives_the_records_of_local(
    command, tmp_path
):
    """Each run ends with a line. Joblib's processes also divide the cores: each has one of two."""
    sweep = ("-m", "seed=0,1,2", "train.steps=300", "train.log_every=10", "logger=disabled")
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"paths.runs={tmp_path / 'joblib'}")
    of_local = Terminal().shows_of(command, *sweep, f"paths.runs={tmp_path / 'local'}", "runtime.threads=1")
    of_joblib = Terminal().shows_of_a_process(*sweep, *joblib, LOKY_MAX_CPU_COUNT="2")
    for code, shown in (of_local, of_joblib):
        assert code == 0 and "3 runs:" in shown and "/900" in shown and "sweep: 3 done" in shown
        assert len(re.findall(r"digits-mlp-sgd-none-\w+: done", shown)) == 3 and "started" not in shown
    for path in (tmp_path / "local").iterdir():
        provenance = json.loads((tmp_path / "joblib" / path.name / "provenance.json").read_text())
        assert [session["threads"] for session in provenance["sessions"]] == [1]
        assert (path / "metrics.jsonl").read_bytes() == (tmp_path / "joblib" / path.name / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("seconds", "shown"), [(5, "0:05"), (65.4, "1:05"), (3700, "1:01:40")])
def test_clock(seconds, shown):
    assert progress.format_duration(seconds) == shown
