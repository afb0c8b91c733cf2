"""What goes wrong in a sweep stays with its run: the others are trained, it is named, the same command mends it."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import PROJECT
from wdlab.records.directory import RunDirectory

TINY = (
    "train.steps=10",
    "train.log_every=10",
    "train.eval_every=10",
    "model.width=8",
    "logger=disabled",
    "runtime.threads=1",
)
LAUNCHERS = {
    "local": ("hydra/launcher=local",),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
}
launchers = pytest.mark.parametrize("launcher", LAUNCHERS)


def faulty(network: str) -> list[str]:
    """The overrides of a job that goes wrong."""
    return [f"model._target_=tests.faulty.{network}", f"model.name={network}"]


def good(*seeds: int) -> list[list[str]]:
    return [[f"seed={seed}"] for seed in seeds]


@pytest.fixture
def sweep(shell, command, tmp_path):
    """Run a list of jobs with a launcher; returns the finished process. Only joblib needs one of its own."""

    def _sweep(launcher: str, jobs: list[list[str]], *options: str):
        (tmp_path / "jobs.json").write_text(json.dumps(jobs))
        run = shell if launcher == "joblib" else command
        return run("-m", "hydra.sweeper.jobs=jobs.json", *TINY, *LAUNCHERS[launcher], *options)

    return _sweep


def statuses(folder) -> dict[str, dict]:
    """The status.json of every run, by the run's name without its hash."""
    found = {path.name: json.loads((path / "status.json").read_text()) for path in folder.glob("*-*")}
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]  # the stop files are deleted
    return {name.rpartition("-")[0]: status for name, status in found.items()}


@launchers
def test_of_twelve_jobs_some_go_wrong_and_are_named(sweep, tmp_path, launcher):
    """With joblib one of them ends its worker too, which takes no other run with it."""
    jobs = good(*range(9 - (launcher == "joblib")))
    for position, job in ((2, faulty("Raises")), (5, faulty("Exits")), (8, ["optimizer.lr=1e30"])):
        jobs.insert(position, job)
    if launcher == "joblib":
        jobs.insert(4, faulty("Dies"))
    ended = sweep(launcher, jobs, "runtime.checkpoint_seconds=0")
    assert ended.returncode == 1, ended.stderr
    bad, stale = (3, "") if launcher == "local" else (4, ", 1 stale")
    assert f"error: {bad} of 12 runs did not end well; see above\n" in ended.stderr
    assert launcher == "joblib" or ended.stderr.count("\n") == 1
    assert f"sweep: 1 diverged, {12 - bad} done, 2 failed{stale}\n" in ended.stdout
    named = ended.stdout[ended.stdout.index("sweep: ") :].splitlines()[1:]
    assert [re.sub(r"-\w{12}:", ":", line) for line in named if "-Dies-" not in line] == [
        "  digits-Raises-sgd-none: failed, in two lines",
        "  digits-Exits-sgd-none: failed, sys.exit(3) was called",
        "  digits-mlp-sgd-none: diverged, step 10",
    ]
    told = "stale, its process died at step 0; the same command resumes it"
    died = [line for line in named if re.fullmatch(rf"  digits-Dies-sgd-none-\w+: {told}", line)]
    assert len(died) == (launcher == "joblib") and len(named) == bad
    found = statuses(tmp_path / "results" / "runs")
    assert found["digits-Exits-sgd-none"]["status"] == "failed"
    assert "in go_wrong\n" in found["digits-Exits-sgd-none"]["traceback"]


@launchers
def test_with_fail_fast_a_sweep_stops_at_the_first_that_goes_wrong(sweep, tmp_path, launcher):
    jobs = [*good(0, 1), faulty("Exits"), *good(*range(2, 10))]
    ended = sweep(launcher, jobs, "fail_fast=true")
    assert ended.returncode == 1 and ended.stderr == "error: 1 of 11 runs did not end well; see above\n"
    counts = re.search(r"^sweep: (\d+) done, 1 failed, (\d+) skipped$", ended.stdout, re.MULTILINE)
    done, skipped = map(int, counts.groups())
    assert done + skipped == 10 and (done == 2 if launcher == "local" else 1 <= done <= 6)
    later = sweep("local", good(*range(8, 10)), "fail_fast=true")  # what stopped one sweep is nothing to another
    assert later.returncode == 0 and "sweep: 2 done\n" in later.stdout
    statuses(tmp_path / "results" / "runs")


@pytest.mark.parametrize(
    ("network", "told"),
    [("ExitsWhenBuilt", "sys.exit('no such thing') was called"), ("RaisesWhenTried", "RuntimeError: not even once")],
)
def test_code_that_goes_wrong_while_jobs_are_checked_is_recorded_with_its_run(sweep, tmp_path, network, told):
    ended = sweep("local", [faulty(network), *good(0)])
    assert ended.returncode == 1 and "sweep: 1 done, 1 failed\n" in ended.stdout
    status = statuses(tmp_path / "results" / "runs")[f"digits-{network}-sgd-none"]
    assert (status["status"], status["error"]) == ("failed", told) and "Traceback" in status["traceback"]


def test_a_single_run_that_exits_is_one_line(shell, tmp_path):
    ended = shell(*TINY, *faulty("Exits"))
    assert ended.returncode == 1
    assert re.fullmatch(r"error: digits-Exits-sgd-none-\w+: failed, sys.exit\(3\) was called\n", ended.stderr)


SIGNALS = [
    ("local", signal.SIGINT, "group"),
    ("local", signal.SIGTERM, "parent"),
    ("joblib", signal.SIGINT, "group"),
    ("joblib", signal.SIGTERM, "group"),
    ("joblib", signal.SIGTERM, "parent"),
]


@pytest.mark.long
@pytest.mark.parametrize(("launcher", "number", "scope"), SIGNALS)
def test_a_sweep_told_to_stop_ends_at_a_step_and_the_same_command_finishes(tmp_path, launcher, number, scope):
    long = ("train.steps=4000", "train.log_every=100", "train.eval_every=4000", "runtime.checkpoint_seconds=1000")
    command = [sys.executable, "-m", "wdlab.train", "-m", "seed=0,1,2,3", *TINY, *long, *LAUNCHERS[launcher]]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **pipes)
    folder = tmp_path / "results" / "runs"
    while len(list(folder.glob("*/metrics.jsonl"))) < (2 if launcher == "joblib" else 1):
        assert process.poll() is None
        time.sleep(0.01)
    (os.killpg if scope == "group" else os.kill)(process.pid, number)
    told, complaints = process.communicate(timeout=240)
    assert process.returncode == 130, complaints
    assert "interrupted; the same command resumes from here\n" in complaints and "Traceback" not in complaints
    assert "sweep: " in told and "interrupted" in told.splitlines()[-1]
    for name, status in statuses(folder).items():
        assert status["status"] in ("interrupted", "done"), name
    stopped = [path for path in folder.glob("*-*") if RunDirectory(folder, path.name).status == "interrupted"]
    assert stopped and all((path / "checkpoint.pt").exists() for path in stopped)
    again = subprocess.run(command, cwd=tmp_path, env=environment, **pipes, check=False)
    assert again.returncode == 0 and "sweep: 4 done\n" in again.stdout and "resumed at step" in again.stdout


@pytest.mark.long
@launchers
def test_a_damaged_checkpoint_in_a_sweep_is_named_and_the_others_are_trained(sweep, tmp_path, launcher):
    assert sweep("local", good(0, 1), "runtime.checkpoint_seconds=0").returncode == 0
    folder = tmp_path / "results" / "runs"
    for path, damage in zip(sorted(folder.iterdir()), (b"", b"garbage"), strict=True):
        (path / "status.json").write_text('{"status": "running"}')
        (path / "checkpoint.pt").write_bytes(damage)
    ended = sweep(launcher, good(0, 1, 2))
    assert ended.returncode == 1 and "sweep: 1 done, 2 failed\n" in ended.stdout
    line = r"^  [\w-]+: failed, .*checkpoint\.pt: damaged, .*; delete it to resume from the checkpoint before it$"
    assert len(re.findall(line, ended.stdout, re.MULTILINE)) == 2
    for path in folder.glob("*/checkpoint.pt"):
        if path.stat().st_size < 100:
            path.unlink()
    assert "sweep: 3 done\n" in sweep(launcher, good(0, 1, 2)).stdout


@pytest.mark.long
def test_two_launches_of_one_sweep_share_its_runs(tmp_path):
    command = [sys.executable, "-m", "wdlab.train", "-m", "seed=0,1,2,3,4,5", *TINY, "train.steps=500"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) for _ in range(2)]
    told = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    for path in (tmp_path / "results" / "runs").iterdir():
        assert len(json.loads((path / "provenance.json").read_text())["sessions"]) == 1  # trained once
        assert json.loads((path / "status.json").read_text())["status"] == "done"
        assert sum(f"{path.name}: started" in text for text in told) == 1


@pytest.mark.long
def test_with_fail_fast_a_worker_that_dies_ends_the_sweep(sweep):
    ended = sweep("joblib", [faulty("Dies"), *good(*range(12))], "fail_fast=true")
    assert ended.returncode == 1
    assert "digits-Dies-sgd-none" in ended.stdout and re.search(r"sweep: .* skipped", ended.stdout)
