"""A sweep and Hydra: interpolations, folders, swept groups, runs given twice, callbacks, another sweeper."""

import os
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import OmegaConf

from tests.conftest import TINY
from wdlab import train, validation
from wdlab.records import directory
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import CONFIGS, compose_config, run_name
from wdlab.search import expand
from wdlab.sweeps import progress
from wdlab.sweeps.sweeper import Sweep

HERE = ("runtime=cpu", "runtime.threads=1", "train.steps=4", "train.log_every=4", "train.eval_every=4")
LAUNCHERS = ("local", "stacked")
seen: list[tuple] = []  # by callbacks


def number(hydra) -> int | None:
    """Of a job; a single run has none."""
    return None if OmegaConf.is_missing(hydra.job, "num") else hydra.job.num


class Witness(Callback):
    """Keeps what Hydra tells callbacks, for ``+hydra.callbacks.witness._target_=tests.sweeps.test_sweeper.Witness``."""

    def on_job_start(self, config, **_):
        seen.append(("start", number(config.hydra), config.optimizer.lr, number(HydraConfig.get())))

    def on_job_end(self, config, job_return, **_):
        seen.append(("end", number(config.hydra), config.optimizer.lr, job_return.status.name))


WITNESS = "+hydra.callbacks.witness._target_=tests.sweeps.test_sweeper.Witness"


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Type ``python -m wdlab.train`` in an empty folder, in this process; returns exit code, output and error."""
    monkeypatch.chdir(tmp_path)
    for name in ("WDLAB_DATA", "HYDRA_FULL_ERROR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def _command(*arguments: str) -> tuple[int, str, str]:
        GlobalHydra.instance().clear()
        capfd.readouterr()
        flags = [word for word in arguments if word.startswith("-")]
        monkeypatch.setattr(sys, "argv", ["wdlab", *flags, *TINY, *HERE, *arguments[len(flags) :]])
        code = 0
        try:
            train.main()
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        return code, *capfd.readouterr()

    return _command


def names(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/summary.json")}


# -- interpolations


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_hydra_s_values_mean_in_a_sweep_what_they_mean_in_a_single_run(command, tmp_path, launcher):
    assert command("paths.runs=${hydra:runtime.cwd}/runs", "seed=5")[0] == 0
    sweep = ("-m", "paths.runs=${hydra:runtime.cwd}/runs", "seed=5,6,7", f"hydra/launcher={launcher}")
    code, told, complaint = command(*sweep)
    assert code == 0 and "3 runs: 1 finished before, 2 to do" in told and "3 done" in told, told + complaint
    assert len(names(tmp_path / "runs")) == 3
    assert "3 finished before, 0 to do" in command(*sweep)[1]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_number_of_a_job_stays_when_others_are_finished(command, tmp_path, launcher):
    sweep = ("-m", 'paths.runs="it\'s ${hydra:job.num}"', "seed=5,6,7", f"hydra/launcher={launcher}")
    code, told, complaint = command(*sweep)
    assert code == 0, told + complaint
    folders = [tmp_path / f"it's {number}" for number in range(3)]
    assert [len(names(folder)) for folder in folders] == [1, 1, 1]
    (directory,) = folders[1].iterdir()
    (directory / "status.json").unlink()
    (directory / "checkpoint.pt").unlink()
    code, told, _ = command(*sweep)
    assert code == 0 and "3 runs: 2 finished before, 1 to do" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name for folder in folders]


def test_a_sweep_has_one_time(command, tmp_path):
    code, told, complaint = command("-m", "paths.runs=${now:%f}", "seed=0,1")
    assert code == 0 and "2 done" in told, told + complaint
    (folder,) = tmp_path.iterdir()
    assert len(names(folder)) == 2


def test_a_job_s_folder_and_values_within_lists_are_those_of_the_job(command, tmp_path):
    line = ("-m", "hydra.sweep.dir=out", "hydra.sweep.subdir=job${hydra.job.num}", "seed=3,4")
    more = ("paths.runs=${hydra:runtime.output_dir}", "lr_schedule=multistep")
    code, told, complaint = command(*line, *more, "lr_schedule.milestones=[${hydra:job.num},9]")
    assert code == 0, told + complaint
    for number in range(2):
        (name,) = names(tmp_path / "out" / f"job{number}")
        written = RunDirectory(tmp_path / "out" / f"job{number}", name).read_config()
        assert written["lr_schedule"]["milestones"] == [number, 9] and written["seed"] == 3 + number


def test_with_chdir_runs_are_where_they_were_checked_in_a_sweep_and_alone(command, tmp_path):
    sweep = ("hydra.job.chdir=true", "hydra.sweep.dir=out", "hydra.sweep.subdir=${hydra.job.num}", "paths.runs=runs")
    code, told, complaint = command("-m", "seed=0,1", *sweep)
    assert code == 0 and "2 done" in told, told + complaint
    assert command("seed=2", "hydra.job.chdir=true", "hydra.run.dir=alone", "paths.runs=runs")[0] == 0
    assert len(names(tmp_path / "runs")) == 3
    assert "3 finished before" in command("-m", "seed=0,1,2", "paths.runs=runs")[1]


def test_what_the_environment_spells_is_taken_as_typed(command, tmp_path, monkeypatch):
    values = {"LR": "0.3", "STEPS": "4", "B": "[0.8,0.99]", "CLIP": "null", "PLACE": "2024"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    typed = (
        "optimizer=adam",
        "optimizer.lr=0.3",
        "train.steps=4",
        "optimizer.betas=[0.8,0.99]",
        "train.clip_norm=null",
    )
    spelled = (
        *("optimizer=adam", "optimizer.lr=${oc.env:LR}", "optimizer.betas=${oc.env:B}", "train.steps=${oc.env:STEPS}"),
        *("train.clip_norm=${oc.env:CLIP}", "model.width=${oc.env:NOWHERE,8}"),
    )
    assert run_name(compose_config([*TINY, *HERE, *spelled])) == run_name(compose_config([*TINY, *HERE, *typed]))
    code, told, complaint = command(*spelled, "paths.runs=${oc.env:PLACE}")
    assert code == 0, complaint
    code, told, complaint = command("-m", *typed, "seed=0,1", "paths.runs='2024'")
    assert code == 0 and "2 runs: 1 finished before, 1 to do" in told
    assert "2 finished before" in command("-m", *spelled, "seed=0,1", "paths.runs=${oc.env:PLACE}")[1]
    (directory, _) = sorted((tmp_path / "2024").iterdir(), key=lambda path: path.stat().st_ctime_ns)
    assert RunDirectory(tmp_path / "2024", directory.name).read_config()["optimizer"]["lr"] == 0.3


def test_words_from_the_environment_are_refused_where_numbers_are_due(command, monkeypatch):
    monkeypatch.setenv("LR", "fast")
    for line in (("optimizer.lr=${oc.env:LR}",), ("-m", "optimizer.lr=${oc.env:LR}", "seed=0,1")):
        code, told, complaint = command(*line)
        assert (code, told, complaint) == (2, "", "error: optimizer.lr=fast: must be a number\n")
    assert "LR_NOT_SET" in command("optimizer.lr=${oc.env:LR_NOT_SET}")[2]


# -- what is swept over


@pytest.mark.parametrize(
    "swept, key, value",
    [
        ("regularizer/over_time=early,late", "regularizer.over_time.epochs", "3"),
        ("lr_schedule=cosine,multistep", "lr_schedule.name", "mine"),
        ("optimizer=adam,sgd", "optimizer.lr", "1e-3"),
        ("optimizer=adam,adamw", "optimizer.betas", "[0.8,0.9]"),
        ("dataset=digits,descriptions", "dataset.val_size", "100"),
    ],
)
def test_a_key_that_every_swept_choice_has_can_be_given(command, monkeypatch, swept, key, value):
    jobs = []
    monkeypatch.setattr(Sweep, "_run", lambda self, todo: jobs.extend(todo))
    monkeypatch.setattr("wdlab.validation.check_config", lambda *_: None)
    _, told, complaint = command("-m", "regularizer=l2", swept, f"{key}={value}")
    group, choices = swept.split("=")
    assert "2 runs: 0 finished before, 2 to do" in told, complaint
    expected = [
        compose_config([*TINY, *HERE, "regularizer=l2", f"{group}={choice}", f"{key}={value}"])
        for choice in choices.split(",")
    ]
    assert [job.config for job in jobs] == expected and jobs[0].directory.name != jobs[1].directory.name


def test_such_a_sweep_trains_and_is_found_again(command, tmp_path):
    sweep = ("-m", "regularizer=l2", "regularizer/over_time=early,late", "regularizer.over_time.epochs=0.1")
    code, told, complaint = command(*sweep)
    assert code == 0 and "2 done" in told, told + complaint
    assert "2 finished before" in command(*sweep)[1]
    for name in names(tmp_path / "results" / "runs"):
        written = RunDirectory(tmp_path / "results" / "runs", name).read_config()
        assert written["regularizer"]["over_time"]["epochs"] == 0.1


@pytest.mark.parametrize(
    "line, told",
    [
        ("optimizer=adam,sgd optimizer.betas=[0.9,0.9]", "optimizer.betas: unknown key; allowed: lr, momentum"),
        ("regularizer.strenght=1 seed=0,1", "regularizer.strenght: unknown key; did you mean strength?"),
        (
            "model=mlp regularizer=l2,pnorm regularizer.cautious=true seed=0,1",
            "regularizer.cautious: unknown key; allowed: strength, scope, route, over_time (regularizer=l2)\n",
        ),
        ("seed=0,1 optimizer.lr=[", "command line: optimizer.lr=[: cannot be read as key=value"),
        ("seed=0,1 model.width=", "model.width='': must be a whole number"),
        (
            "seed=interval(0,1)",
            "seed=interval(0,1): an interval needs a number of trials, such as hydra.sweeper.trials=16",
        ),
    ],
)
def test_a_key_that_a_swept_choice_lacks_is_named(command, line, told):
    code, _, complaint = command("-m", *line.split())
    assert code == 2 and complaint.startswith(f"error: {told}") and complaint.count("\n") == 1, complaint


@pytest.mark.parametrize(
    "line",
    [
        "a=1,2 b=x,'y=z' c=3",
        "a=1,2 b=3 a=4",
        "a=choice([1,2],{k:v}) b=range(0,4,2) +c=1,2 ~d g/h@i=j,k",
        "a=sort(3,1,2) b=shuffle(1) c=tag(t,choice(1,2)) model=glob(resnet*)",
    ],
)
def test_the_grid_is_that_of_hydra_s_basic_sweeper(line):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        (expected,) = BasicSweeper.split_arguments(parser.parse_overrides(line.split(" ")), None)
        assert expand(parser.parse_overrides(line.split(" "))) == expected


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_run_that_is_given_twice_is_trained_once_and_counted_twice(command, tmp_path, launcher):
    sweep = ("-m", "optimizer.lr=0.1,0.10,0.2", f"hydra/launcher={launcher}")
    code, told, complaint = command(*sweep)
    assert code == 0, complaint
    assert "3 runs: 0 finished before, 2 to do, 1 the same as others" in told and "sweep: 3 done" in told
    assert told.count("started") == (1 if launcher == "stacked" else 2)  # a line for each run, or for the stack
    assert len(names(tmp_path / "results" / "runs")) == 2
    code, told, complaint = command("-m", "optimizer.lr=1e30,1e30", f"hydra/launcher={launcher}")
    assert code == 1 and "sweep: 2 diverged" in told and complaint.startswith("error: 2 of 2 runs did not end well")
    assert told.count(": diverged, step 4\n") == 1


# -- who is told of the end


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_callbacks_see_jobs_that_fail_as_failed(command, launcher):
    seen.clear()
    code, told, complaint = command("-m", WITNESS, "optimizer.lr=1e30,0.1", f"hydra/launcher={launcher}")
    assert code == 1 and "sweep: 1 diverged, 1 done" in told, told + complaint
    assert sorted(seen) == [
        *[("end", 0, 1e30, "FAILED"), ("end", 1, 0.1, "COMPLETED")],
        *[("start", 0, 1e30, 0), ("start", 1, 0.1, 1)],
    ]
    assert seen[0][0] == "start"


def test_callbacks_see_a_single_run_that_fails_as_failed(command):
    seen.clear()
    code, _, complaint = command(WITNESS, "optimizer.lr=1e30")
    assert code == 1 and seen == [("start", None, 1e30, None), ("end", None, 1e30, "FAILED")]
    assert complaint.startswith("error: digits-mlp-sgd-none-") and complaint.count("\n") == 1
    assert command(WITNESS, "optimizer.lr=1e30")[0] == 1, "it has diverged before"
    assert command(WITNESS)[0] == 0 and seen[-1] == ("end", None, 0.1, "COMPLETED")


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("bad", ["optimizer.lr=1e30", "optimizer.lr=-1"])
def test_hydra_s_own_sweeper_fails_if_runs_do(command, tmp_path, launcher, bad):
    code, _, complaint = command("-m", "hydra/sweeper=basic", f"hydra/launcher={launcher}", bad, "seed=0,1")
    assert code == 1 and complaint.splitlines()[-1].startswith("error: ")
    assert command("-m", "hydra/sweeper=basic", "seed=0,1")[0] == 0


# -- what a sweep does once


def test_runs_that_differ_in_their_seeds_are_checked_by_one_build(command, monkeypatch):
    built, unchanged = [], []
    build_one = validation.build_parts
    monkeypatch.setattr(validation, "build_parts", lambda config: built.append(config["seed"]) or build_one(config))
    monkeypatch.setattr(validation, "check_data_unchanged", lambda config, directory: unchanged.append(directory.name))
    monkeypatch.setattr(Sweep, "_run", lambda self, todo: None)
    command("-m", "regularizer=l2", "regularizer.strength=1e-3,1e-2", "seed=0,1,2")
    assert built == [0, 0] and len(set(unchanged)) == 6  # the data of every run are checked
    code, _, complaint = command("-m", "seed=0,1,-1")
    assert code == 2 and "seed=-1: must be a whole number" in complaint


@pytest.mark.parametrize("launcher, times", [("stacked", 1), ("local", 2)])
def test_a_sweep_hashes_a_config_once(command, monkeypatch, launcher, times):
    """A run that is trained by the launcher of Hydra is composed anew, and hashed a second time."""
    hashed = []
    monkeypatch.setattr(directory, "run_name", lambda config: hashed.append(config["seed"]) or run_name(config))
    assert command("-m", f"hydra/launcher={launcher}", "seed=0,1,2")[0] == 0
    assert sorted(hashed) == sorted([0, 1, 2] * times)


def test_the_progress_bar_of_many_runs_is_refreshed_less_often(tmp_path, monkeypatch):
    now, pauses = [0.0], []

    def refresh(self):
        now[0] += 3.0

    def wait(pause):
        pauses.append(pause)
        return len(pauses) == 3

    monkeypatch.setattr(progress.SweepProgress, "_refresh", refresh)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.SweepProgress([(RunDirectory(tmp_path, "a"), 1)])
    monkeypatch.setattr(bar._over, "wait", wait)
    bar._watch()
    assert pauses == [progress.REFRESH_SECONDS, 3 / progress.LARGEST_SHARE, 3 / progress.LARGEST_SHARE]
