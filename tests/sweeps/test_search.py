"""Sweeps over intervals from the command line: every launcher, more trials, a kill, overlays, and what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.conftest import PROJECT, TINY
from tests.test_train import same_ending
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import compose_config, run_name
from wdlab.search import expand

LR = "optimizer.lr=tag(log,interval(1e-3,1))"
HERE = ("runtime=cpu", "runtime.threads=1", "paths.runs=runs")
LAUNCHERS = {
    "local": ("hydra/launcher=local",),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1"),  # in the process that launches
    "stacked": ("hydra/launcher=stacked",),
}
PROCESSES = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def expected(*line: str, trials: int, settings: tuple[str, ...] = TINY) -> set[str]:
    """The names of the runs that a line stands for."""
    jobs = expand(OverridesParser.create().parse_overrides([*line]), trials)
    return {run_name(compose_config([*settings, *job])) for job in jobs}


def trained(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/summary.json")}


@pytest.fixture
def sweep(shell, command):
    """Type a sweep. Only joblib's processes need a process of their own."""

    def _sweep(launcher: tuple[str, ...], *arguments: str):
        run = shell if launcher == PROCESSES else command
        return run("-m", *HERE, *arguments, *launcher)

    return _sweep


@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)
def test_a_search_is_extended_by_more_trials(sweep, tmp_path, launcher):
    line = (*TINY, LR, "seed=0,1")
    done = sweep(launcher, *line, "hydra.sweeper.trials=2")
    assert done.returncode == 0 and "4 runs: 0 finished before, 4 to do" in done.stdout, done.stdout + done.stderr
    first = trained(tmp_path / "runs")
    assert first == expected(LR, "seed=0,1", trials=2) and len(first) == 4
    done = sweep(LAUNCHERS["local"], *line, "hydra.sweeper.trials=3")  # with any launcher
    assert done.returncode == 0 and "6 runs: 4 finished before, 2 to do" in done.stdout
    assert trained(tmp_path / "runs") == expected(LR, "seed=0,1", trials=3) > first


LONG = (
    "runtime.threads=1",
    "train.steps=1000",
    "train.log_every=50",
    "train.eval_every=500",
    "model.width=16",
    "logger=disabled",
)
KEPT = "runtime.checkpoint_seconds=0.02"


@pytest.mark.parametrize(
    "launcher",
    [LAUNCHERS["local"], pytest.param(PROCESSES, marks=pytest.mark.long), LAUNCHERS["stacked"]],
    ids=["local", "joblib", "stacked"],
)
def test_a_search_that_is_killed_ends_with_the_same_runs(sweep, tmp_path, launcher):
    line = (*LONG, LR, "regularizer=l2", "regularizer.strength=tag(log,interval(1e-5,1e-2))", "seed=0,1")
    line = (*line, "hydra.sweeper.trials=2")
    arguments = [sys.executable, "-m", "wdlab.train", "-m", *HERE, *line, KEPT, *launcher]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            arguments, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    folder = tmp_path / "runs"
    while not list(folder.glob("*/checkpoint.pt")):
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed = {path.name for path in folder.iterdir() if path.is_dir()}
    assert len(trained(folder)) < 4
    done = sweep(launcher, *line)
    assert done.returncode == 0 and "4 runs: " in done.stdout and "sweep: 4 done" in done.stdout, done.stdout
    assert killed <= trained(folder) == {path.name for path in folder.iterdir() if path.is_dir()}
    assert len(trained(folder)) == 4
    done = sweep(LAUNCHERS["local"] if launcher == PROCESSES else launcher, *line, "paths.runs=whole")
    assert done.returncode == 0 and "4 runs: 0 finished before, 4 to do" in done.stdout
    assert trained(tmp_path / "whole") == trained(folder)
    for name in trained(folder):
        whole, parts = RunDirectory(tmp_path / "whole", name), RunDirectory(folder, name)
        # what is left may be another stack, in which a metric may differ in its last bit
        if launcher == LAUNCHERS["stacked"]:
            lines, others = ([json.loads(line) for line in run.metrics.open()] for run in (whole, parts))
            assert [line["step"] for line in lines] == [line["step"] for line in others]
            assert all(line == pytest.approx(other, rel=1e-9) for line, other in zip(lines, others, strict=True))
        else:
            same_ending(whole, parts)


def test_the_seed_of_a_search_gives_other_runs(command, tmp_path):
    for seed in (0, 1):
        assert command("-m", *HERE, *TINY, LR, f"hydra.sweeper.search_seed={seed}", "hydra.sweeper.trials=1")
    assert len(trained(tmp_path / "runs")) == 2


def test_whole_numbers_are_for_keys_that_need_them(command, tmp_path):
    line = ("-m", *HERE, *TINY, "hydra.sweeper.trials=2")
    done = command(*line, "model.width=tag(log,int(interval(4,64)))")
    assert done.returncode == 0 and len(trained(tmp_path / "runs")) == 2, done.stderr
    done = command(*line, "model.width=interval(4,64)")
    assert done.returncode == 2 and done.stderr.startswith("error: model.width=")
    assert done.stderr.endswith("must be a whole number >= 1\n") and done.stderr.count("\n") == 1


def test_a_search_is_crossed_with_a_list_of_jobs(command, tmp_path):
    jobs = [["regularizer=l2", "regularizer.strength=1e-3"], ["regularizer=none"]]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    done = command("-m", *HERE, *TINY, LR, "hydra.sweeper.trials=2", "hydra.sweeper.jobs=jobs.json")
    assert done.returncode == 0 and "sweep: 4 done" in done.stdout
    assert trained(tmp_path / "runs") == expected(LR, *jobs[0], trials=2) | expected(LR, *jobs[1], trials=2)
    points = expand(OverridesParser.create().parse_overrides([LR]), 2)
    drawn = [" ".join([*point, *job]) for point in points for job in jobs]
    for number, settings in enumerate(drawn, 1):
        assert re.search(rf": started, job {number}: .*{re.escape(settings)}$", done.stdout, re.MULTILINE)


# -- the experiments that search

SHORT = ("train.steps=4", "train.log_every=4", "train.eval_every=4", "model.width=8", "logger=disabled")
RANGES = {
    "adamw": ("optimizer.lr=tag(log,interval(1e-4,1e-2))", "regularizer.strength=tag(log,interval(1e-3,10))"),
    "pathprox": ("optimizer.lr=tag(log,interval(1e-2,1))", "regularizer.strength=tag(log,interval(1e-5,1e-2))"),
    "pnorm": ("optimizer.lr=tag(log,interval(1e-4,1e-2))", "regularizer.strength=tag(log,interval(1e-3,1))"),
}


@pytest.mark.parametrize("name", RANGES)
def test_an_experiment_brings_its_intervals(command, tmp_path, name):
    experiment = f"+experiment=digits_search_{name}"
    done = command("-m", *HERE, *SHORT, experiment, "hydra.sweeper.trials=3", *LAUNCHERS["stacked"])
    assert done.returncode == 0 and "3 runs in one stack: 3 done" in done.stdout, done.stdout + done.stderr
    assert trained(tmp_path / "runs") == expected(*RANGES[name], trials=3, settings=(experiment, *SHORT))


def test_several_experiments_have_their_own_intervals(command, tmp_path):
    line = ("+experiment=digits_search_adamw,digits_search_pnorm", "hydra.sweeper.trials=2", "seed=0,1")
    done = command("-m", *HERE, *SHORT, *line, *LAUNCHERS["stacked"])
    assert done.returncode == 0 and "sweep: 8 done" in done.stdout, done.stdout + done.stderr
    both = [
        expected(*RANGES[name], "seed=0,1", trials=2, settings=(f"+experiment=digits_search_{name}", *SHORT))
        for name in ("adamw", "pnorm")
    ]
    assert trained(tmp_path / "runs") == both[0] | both[1] and len(both[0] | both[1]) == 8


def test_the_command_line_replaces_an_interval_of_an_experiment(command, tmp_path):
    line = ("+experiment=digits_search_pnorm", *SHORT)
    done = command("-m", *HERE, *line, "optimizer.lr=1e-3,2e-3", "hydra.sweeper.trials=2")
    assert done.returncode == 0 and "sweep: 4 done" in done.stdout, done.stderr
    swept = ("optimizer.lr=1e-3,2e-3", RANGES["pnorm"][1])
    assert trained(tmp_path / "runs") == expected(*swept, trials=2, settings=line)


# -- what is refused


@pytest.mark.parametrize(
    "line, told",
    [
        (LR, f"{LR}: an interval needs a number of trials, such as hydra.sweeper.trials=16"),
        ("hydra.sweeper.trials=4", "hydra.sweeper.trials=4: no key has an interval, such as optimizer.lr=tag(log,"),
        (
            "+experiment=digits_search_pnorm,digits_pathprox hydra.sweeper.trials=2",
            "hydra.sweeper.trials=2: no key has an interval in +experiment=digits_pathprox, such as optimizer.lr=",
        ),
        (f"{LR} hydra.sweeper.trials=0", "hydra.sweeper.trials=0: must be a whole number from 1 to "),
        (f"{LR} hydra.sweeper.trials=2.5", "hydra.sweeper.trials=2.5: must be a whole number from 1 to "),
        (f"{LR} hydra.sweeper.trials=many", "hydra.sweeper.trials=many: must be a whole number from 1 to "),
        (f"{LR} hydra.sweeper.trials=4,8", "Sweeping over Hydra's configuration is not supported"),
        (f"{LR} hydra.sweeper.trials=2 hydra.sweeper.search_seed=-1", "hydra.sweeper.search_seed=-1: must be a whole "),
        (f"{LR} hydra.sweeper.trial=2", "hydra.sweeper.trial: unknown key; did you mean trials? "),
        (
            "hydra.sweeper.trials=2 optimizer.lr=tag(log,interval(0,1))",
            "optimizer.lr=tag(log,interval(0,1)): an interval with the tag log must be > 0",
        ),
        (
            "hydra.sweeper.trials=2 optimizer.lr=interval(1,0)",
            "optimizer.lr=interval(1,0): the interval must be from a finite number to a larger one",
        ),
        (
            "hydra.sweeper.trials=2 optimizer.lr=tag(ln,interval(1,2))",
            "optimizer.lr=tag(ln,interval(1,2)): unknown tag ln; allowed: log",
        ),
        (
            "hydra.sweeper.trials=2 optimizer.lr=0.1,interval(1,2)",
            "optimizer.lr=0.1,interval(1,2): an interval cannot be one of several values; give key=interval(a,b)",
        ),
        ("hydra.sweeper.params={optimizer.lr:'interval(1,2)'}", "optimizer.lr=interval(1,2): an interval needs"),
        (
            "hydra.sweeper.params={optimizer.lr:'interval(2,1)'} hydra.sweeper.trials=2",
            "optimizer.lr=interval(2,1): the interval must be",
        ),
        ("+experiment=digits_search_pnorm", "optimizer.lr=tag(log,interval(1e-4,1e-2)): an interval needs a number"),
        ("hydra.sweeper.trials=2 optimizer.lr=interval(-1,-0.5)", "optimizer.lr=-0."),
    ],
)
def test_what_cannot_be_meant_is_one_line_before_any_run(command, tmp_path, line, told):
    ended = command("-m", "logger=disabled", *line.split())
    assert ended.returncode == 2 and ended.stderr.startswith(f"error: {told}"), ended.stdout + ended.stderr
    assert ended.stderr.count("\n") == 1 and ended.stdout == "" and list(tmp_path.iterdir()) == []


def test_an_interval_in_a_list_of_jobs_is_refused(command, tmp_path):
    (tmp_path / "jobs.json").write_text(json.dumps([["seed=1"], [LR]]))
    for trials in ((), ("hydra.sweeper.trials=2",)):
        ended = command("-m", "hydra.sweeper.jobs=jobs.json", *trials)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1
        assert ended.stderr.startswith(f"error: hydra.sweeper.jobs=jobs.json: {LR}: an interval cannot be in the file")


def test_without_m_an_interval_is_refused(command):
    for line in ((LR,), (LR, "hydra.sweeper.trials=4")):
        ended = command(*line)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "-m" in ended.stderr
