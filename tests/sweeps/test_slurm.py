"""Sweeps on a real SLURM of one node: drained, requeued, out of time, cancelled; the numbers are those of ``local``."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.conftest import PROJECT
from tests.test_train import same_ending
from wdlab.engine import device
from wdlab.errors import ConfigError
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import compose_config, run_name
from wdlab.search import expand

SCRIPT = PROJECT / "scripts" / "slurm" / "single_node.sh"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
OVERRIDES = (
    *("dataset=digits", "model=mlp", "model.width=32", "regularizer=pathprox", "optimizer.momentum=0.9"),
    *("train.log_every=50", "train.eval_every=200", "lr_schedule=cosine", "logger=disabled"),
    *("runtime=cpu", "runtime.checkpoint_seconds=0.02"),
)
SLURM = ("hydra/launcher=slurm", "hydra.launcher.timeout_min=5")  # a signal to end always means that the time is up
LONG, SHORT = 2000, 300  # steps of runs that are to be struck, and of the others
JOBS = [[f"seed={seed}", f"train.steps={LONG if seed < 2 else SHORT}"] for seed in range(6)]


class Cluster:
    """The SLURM in ``folder``, seen from a user's shell in ``home``."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.home, self.started = home, []
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(PROJECT)}
        for name in ("WDLAB_DATA", "HYDRA_FULL_ERROR", "OMP_NUM_THREADS"):
            self.environment.pop(name, None)

    def ask(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout.strip()

    def sweep(self, *overrides: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "wdlab.train", "-m", *OVERRIDES, *overrides]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.started.append(subprocess.Popen(command, cwd=self.home, env=self.environment, **streams))
        return self.started[-1]

    def states(self) -> list[str]:
        """Of the jobs that are not over."""
        return self.ask("squeue", "--array", "--noheader", "--format=%T").split()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}; as root: {SCRIPT.relative_to(PROJECT)} install")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: munge's socket is in it
    it = Cluster(folder / "it", tmp_path_factory.mktemp("home"))
    try:
        subprocess.run([SCRIPT, "start", folder / "it"], check=True, timeout=120)
        yield it
    finally:
        for process in it.started:
            process.kill()
            process.communicate()
        subprocess.run([SCRIPT, "stop", folder / "it"], check=True, timeout=120)
        shutil.rmtree(folder)


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def array_of(process: subprocess.Popen) -> str:
    """The number of the job array that a sweep has submitted."""
    for line in process.stdout:
        if line.startswith("submitted: squeue --job="):
            return line.split("=")[1].split(";")[0]
    raise AssertionError(process.communicate()[1])


def directory(folder: Path, job: list[str]) -> RunDirectory:
    return RunDirectory(folder, run_name(compose_config([*OVERRIDES, *job])))


def trains(run: RunDirectory) -> bool:
    return run.checkpoint.exists() and run.status == "running"


def strike(cluster: Cluster, commands: list[tuple[RunDirectory, tuple[str, ...]]]) -> None:
    """Give each command as soon as its run trains."""
    while commands:
        until(lambda: any(trains(run) for run, _ in commands))
        for run, command in [item for item in commands if trains(item[0])]:
            cluster.ask(*command)
            commands.remove((run, command))


def sessions(run: RunDirectory) -> list[dict]:
    return run.read("provenance.json")["sessions"]


@pytest.fixture(scope="module")
def local(cluster) -> list[RunDirectory]:
    """What JOBS give, one after another on this machine."""
    (cluster.home / "jobs.json").write_text(json.dumps(JOBS))
    process = cluster.sweep("hydra.sweeper.jobs=jobs.json", "paths.runs=local", "runtime.threads=1")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return [directory(cluster.home / "local", job) for job in JOBS]


def test_drained_requeued_out_of_time_and_still_bitwise_that_of_local(cluster, local):
    sweep = cluster.sweep("hydra.sweeper.jobs=jobs.json", "paths.runs=cluster/runs", *SLURM)
    array = array_of(sweep)
    there = [directory(cluster.home / "cluster" / "runs", job) for job in JOBS]
    requeued, out_of_time = there[:2]
    time_is_up = ("scancel", "--signal=USR2", f"{array}_1.0")  # what SLURM sends then
    strike(cluster, [(requeued, ("scontrol", "requeue", f"{array}_0")), (out_of_time, time_is_up)])
    until(lambda: any(run.finished for run in there[2:]))
    cluster.ask("scontrol", "update", "nodename=node", "state=drain", "reason=test")
    until(lambda: "RUNNING" not in cluster.states() and "COMPLETING" not in cluster.states())
    assert cluster.ask("sinfo", "--noheader", "--format=%T") == "drained" and "PENDING" in cluster.states()
    assert sweep.poll() is None
    cluster.ask("scontrol", "update", "nodename=node", "state=resume")
    printed, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, printed + errors
    assert "sweep: 6 done" in printed and errors == ""
    for here, run in zip(local, there, strict=True):
        same_ending(here, run)
    for run, number in ((requeued, 0), (out_of_time, 1)):
        assert len(sessions(run)) == 2
        output = (cluster.home / "cluster" / "slurm" / array / f"{array}_{number}_0_log.out").read_text()
        assert f"{run.name}: started" in output and f"{run.name}: resumed at step" in output
    assert all(session["threads"] == 1 for run in there for session in sessions(run))
    assert {path.name for path in cluster.home.iterdir()} == {"jobs.json", "cluster", "local"}


def test_a_search_whose_command_is_killed_ends_with_the_same_runs(cluster):
    search = ("optimizer.lr=tag(log,interval(1e-3,1))", "hydra.sweeper.trials=2", "seed=0,1", f"train.steps={SHORT}")
    folder = cluster.home / "search" / "runs"
    command = (*search, "paths.runs=search/runs", *SLURM)
    killed = cluster.sweep(*command)
    array = array_of(killed)
    until(lambda: any(RunDirectory(folder, path.name).finished for path in folder.glob("digits-*")))
    killed.kill()
    cluster.ask("scancel", array)
    until(lambda: not cluster.states())
    sweep = cluster.sweep(*command)
    printed, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 0 and "4 runs: " in printed and "sweep: 4 done" in printed, printed + errors
    values = expand(OverridesParser.create().parse_overrides(search[:1]), trials=2)
    jobs = [[*value, f"seed={seed}", search[-1]] for value in values for seed in (0, 1)]
    assert {path.name for path in folder.glob("digits-*")} == {directory(folder, job).name for job in jobs}


@pytest.mark.long
def test_jobs_that_are_lost_take_no_other_with_them_and_the_same_command_goes_on(cluster, local):
    (cluster.home / "three.json").write_text(json.dumps(JOBS[:3]))
    command = ("hydra.sweeper.jobs=three.json", "paths.runs=lost/runs", *SLURM)
    sweep = cluster.sweep(*command, "hydra.launcher.max_num_timeout=0")
    array = array_of(sweep)
    there = [directory(cluster.home / "lost" / "runs", job) for job in JOBS[:3]]
    cancelled, out_of_time, done = there
    time_is_up = ("scancel", "--signal=USR2", f"{array}_1.0")
    strike(cluster, [(cancelled, ("scancel", f"{array}_0")), (out_of_time, time_is_up)])
    printed, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 1 and errors == "error: 2 of 3 runs did not end well; see above\n"
    assert "sweep: 1 done, 2 interrupted" in printed and done.finished
    assert f"  {cancelled.name}: interrupted, SLURM job {array}_0 ended without a result; its output is in " in printed
    assert f"  {out_of_time.name}: interrupted, SLURM job {array}_1 failed; its output is in " in printed
    again = cluster.sweep(*command)
    printed, errors = again.communicate(timeout=300)
    assert again.returncode == 0 and "3 runs: 1 finished before, 2 to do" in printed, errors
    for here, run in zip(local[:3], there, strict=True):
        same_ending(here, run)


@pytest.mark.long
def test_ctrl_c_leaves_the_jobs_and_says_how_to_end_them(cluster):
    sweep = cluster.sweep("seed=30", f"train.steps={LONG}", "paths.runs=left/runs", *SLURM)
    job = array_of(sweep)
    until(lambda: cluster.states() == ["RUNNING"])
    sweep.send_signal(signal.SIGINT)
    _, errors = sweep.communicate(timeout=60)
    assert sweep.returncode == 130 and f"to end them: scancel {job}\n" in errors
    assert cluster.states() == ["RUNNING"]
    cluster.ask("scancel", job)
    until(lambda: not cluster.states())


BAD = {
    "hydra.launcher.timeout_min=fast": "hydra.launcher.timeout_min=fast: must be a whole number >= 1",
    "hydra.launcher.mem_gb=0": "hydra.launcher.mem_gb=0: must be null or a whole number >= 1",
    "hydra.launcher.partion=gpu": "hydra.launcher.partion: unknown key; did you mean partition? allowed: partition, ",
    "runtime.device=moon": "runtime.device=moon: must be one of auto, cpu, cuda",
}


@pytest.fixture
def sweep(cluster, command, monkeypatch):
    """Type a sweep that submits nothing, in this process."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    return lambda *overrides: command("-m", *OVERRIDES, "seed=40,41", *SLURM, *overrides, cwd=cluster.home)


@pytest.mark.parametrize("override", BAD)
def test_bad_input_is_one_line_and_submits_nothing(cluster, sweep, override):
    submitted = sorted(cluster.home.rglob("*.pkl"))
    told = sweep(override).stderr
    assert told.startswith(f"error: {BAD[override]}") and told.count("\n") == 1
    assert sorted(cluster.home.rglob("*.pkl")) == submitted


def test_what_slurm_refuses_is_told_in_its_words(sweep):
    ended = sweep("paths.runs=refused/runs", "hydra.launcher.partition=moon")
    assert ended.returncode == 2
    told = ended.stderr.splitlines()[-1]
    assert told.startswith("error: hydra/launcher=slurm: ") and "Invalid partition name" in ended.stderr


@pytest.mark.parametrize("missing", ["submitit", "hydra_plugins.hydra_submitit_launcher"])
def test_without_the_extra_it_is_one_line(command, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)  # its import raises ModuleNotFoundError
    for name in list(sys.modules):
        if name == "wdlab.sweeps.slurm_job" or name.startswith(f"{missing}."):
            monkeypatch.delitem(sys.modules, name)
    ended = command("-m", *OVERRIDES, "seed=40,41", *SLURM)
    line = 'error: hydra/launcher=slurm: needs submitit and hydra-submitit-launcher, pip install -e ".[slurm]"\n'
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", line)


def test_a_device_that_only_the_cluster_has_is_not_asked_for_here(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for overrides in (["runtime=gpu"], ["runtime=gpu", "runtime.precision=tf32"], ["runtime.precision=tf32"]):
        config = compose_config(overrides)["runtime"]
        device.check_runtime(config, here=False)
        with pytest.raises(ConfigError):
            device.check_runtime(config)
    with pytest.raises(ConfigError, match="tf32: only on a CUDA device"):
        device.check_runtime(compose_config(["runtime=cpu", "runtime.precision=tf32"])["runtime"], here=False)
