"""``hydra/launcher=stacked`` from the command line: the same runs as ``local``, whatever is in the sweep."""

import json

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from tests.conftest import TINY
from wdlab import session
from wdlab.build import build_parts
from wdlab.engine import device
from wdlab.engine.experiment import Experiment
from wdlab.errors import explain
from wdlab.interpolations import plain
from wdlab.loop import fit
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import CONFIGS
from wdlab.stacked.eligibility import why_not_stacked
from wdlab.stacked.program import Stack
from wdlab.sweeps import stacks
from wdlab.sweeps.compose import Composer
from wdlab.sweeps.register import register

STACKED = ("hydra/launcher=stacked", "runtime=cpu", "runtime.threads=1", "paths.runs=runs")


def records(folder) -> dict[str, list[dict]]:
    return {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*/metrics.jsonl"))
    }


def nearly(value):
    return None if value is None else pytest.approx(value, rel=1e-3, abs=1e-5)


def test_a_sweep_gives_the_records_of_local_and_says_what_is_not_stacked(shell, command, tmp_path):
    jobs = [
        ["regularizer=l2", "regularizer.strength=1e-3"],
        ["regularizer=pathprox", "optimizer.lr=0.05"],
        ["regularizer=pnorm", "regularizer.p=0.5"],
        ["optimizer=adams", "optimizer.lr=1e-3"],
        ["optimizer=adam", "+optimizer.maximize=true"],
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    sweep = ("-m", *TINY, "seed=0,1", "hydra.sweeper.jobs=jobs.json", "runtime=cpu", "runtime.threads=1")
    done = shell(*sweep, "hydra/launcher=stacked", "paths.runs=stacked")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 10 runs not stacked: optimizer.maximize is for runs that are trained alone" in done.stdout
    assert "10 runs: 0 finished before, 10 to do" in done.stdout and "sweep: 10 done" in done.stdout
    assert all(f"6 runs in one stack: {text}" in done.stdout for text in ("started", "6 done after "))
    assert command(*sweep, "paths.runs=local").returncode == 0
    ours, theirs = records(tmp_path / "stacked"), records(tmp_path / "local")
    assert ours.keys() == theirs.keys() and len(ours) == 10
    for name in ours:
        assert ours[name] == [{key: nearly(value) for key, value in row.items()} for row in theirs[name]]
        both = [RunDirectory(tmp_path / folder, name) for folder in ("stacked", "local")]
        assert {path.name for path in both[0].path.iterdir()} == {path.name for path in both[1].path.iterdir()}
        assert [run.read("provenance.json")["sessions"][0]["stacked"] for run in both] == ["adam-" not in name, False]
    again = command(*sweep, "hydra/launcher=stacked", "paths.runs=stacked")
    assert again.returncode == 0 and "10 runs: 10 finished before, 0 to do" in again.stdout


def test_a_run_that_diverges_leaves_the_others_of_its_stack_alone(command):
    done = command("-m", *TINY, "optimizer.lr=0.1,1e20", "seed=0,1", *STACKED)
    assert done.returncode == 1
    assert "sweep: 2 diverged, 2 done" in done.stdout and "error: 2 of 4 runs did not end well" in done.stderr
    assert done.stdout.count("diverged, step 10") == 2


def test_fail_fast_skips_the_stacks_that_follow(command):
    sweep_of_8 = ("optimizer.lr=1e20,0.1", "seed=0,1,2,3", "hydra.launcher.most=2", "fail_fast=true")
    done = command("-m", *TINY, *sweep_of_8, *STACKED)
    assert done.returncode == 1 and "sweep: 2 diverged, 6 skipped" in done.stdout


@pytest.mark.parametrize("most", ["0", "many", "1.5"])
def test_a_bad_number_of_runs_is_told_in_one_line(command, most):
    done = command("-m", *TINY, "seed=0,1", f"hydra.launcher.most={most}", *STACKED)
    assert done.returncode == 2
    assert done.stderr == f"error: hydra.launcher.most={most}: must be a whole number >= 1\n"


def test_a_checkpoint_of_a_stack_goes_on_by_itself_and_the_other_way_round(compose, tmp_path):
    overrides = ("optimizer=adam", "optimizer.lr=1e-3", "regularizer=pathprox", "train.steps=40", "lr_schedule=cosine")
    whole = [compose(*overrides, f"seed={seed}", runs_in="whole") for seed in range(2)]
    for config in whole:
        session.run(config)
    for first in ("stack", "single"):
        configs = [compose(*overrides, f"seed={seed}", runs_in=first) for seed in range(2)]
        stop_after(20, configs, first)
        if first == "stack":
            for config in configs:
                assert session.run(config) == "done"
        else:
            jobs = [stacks.StackCandidate([], plain(config), RunDirectory.of(config)) for config in configs]
            stacks.train_stack(jobs)
            assert [job.outcome for job in jobs] == ["done", "done"]
        for config, expected in zip(configs, whole, strict=True):
            ours, theirs = (checkpoint.load(RunDirectory.of(c)) for c in (config, expected))
            assert ours["step"] == theirs["step"] == 40
            for key, value in theirs["model"].items():
                assert ours["model"][key].allclose(value, rtol=1e-3, atol=1e-4)
            rows, others = (len(RunDirectory.of(c).metrics.read_text().splitlines()) for c in (config, expected))
            assert rows == others


def stop_after(steps, configs, how):
    """Train to an interrupt behind so many updates."""
    asked = iter(range(10**6))
    stop = lambda: next(asked) >= steps - 1  # noqa: E731
    if how == "stack":
        from tests.stacked.test_stack import members

        of = members(configs, configs[0]["paths"]["runs"])
        assert fit(Stack(of, configs[0]["train"]), configs[0]["train"], float("inf"), stop) == "interrupted"
        for member in of:
            assert member.outcome is None
            member.recorder.close()
        return
    for config in configs:
        asked = iter(range(10**6))
        directory = RunDirectory.of(config)
        directory.create()
        with pytest.raises(KeyboardInterrupt):
            session._train(config, directory, stop)


def test_a_run_that_another_process_has_is_left_to_it(compose):
    configs = [compose(f"seed={seed}") for seed in range(3)]
    jobs = [stacks.StackCandidate([], plain(config), RunDirectory.of(config)) for config in configs]
    held = RunDirectory.of(configs[1])
    held.create()
    with held.lock():
        stacks.train_stack(jobs)
    assert [job.outcome for job in jobs] == ["done", None, "done"]
    assert jobs[1].reason is not None and held.status == "new"


def test_stacks_are_of_one_network_and_length_and_keep_methods_together(compose):
    def job(*overrides):
        config = compose(*overrides)
        return stacks.StackCandidate(list(overrides), plain(config), RunDirectory.of(config))

    same = [job(f"regularizer={r}", f"seed={s}", "optimizer.lr=0.2") for s in range(3) for r in ("l2", "l1")]
    other = [job("model.width=9"), job("train.steps=21"), job("optimizer.momentum=0.5"), job("runtime.onednn=never")]
    found = stacks.group_into_stacks([*same, *other], most=4)
    assert [len(stack) for stack in found] == [3, 3] and all(job.reason for job in other)
    assert [[j.config["regularizer"]["name"] for j in stack] for stack in found] == [["l1"] * 3, ["l2"] * 3]
    rates = [job("regularizer=l2", f"seed={s}", f"optimizer.lr={lr}") for s in range(2) for lr in (0.2, 0.1)]
    (stack,) = stacks.group_into_stacks(rates, most=4)
    assert [j.config["optimizer"]["lr"] for j in stack] == [0.2, 0.2, 0.1, 0.1]


@pytest.mark.parametrize(
    "overrides, told",
    [
        (("optimizer=adams", "optimizer.amsgrad=true"), "optimizer.amsgrad"),
        (("runtime.precision=bf16",), "runtime.precision=bf16"),
        (("+optimizer.weight_decay=1e-4",), "optimizer.weight_decay"),
        (("model=vgg11", "dataset=cifar10"), "model=vgg11"),
    ],
)
def test_what_cannot_be_stacked_says_why(compose, overrides, told):
    config = compose(*overrides)
    parts = build_parts(config)
    machine = device.set_up(config["runtime"], parts[0])
    experiment = Experiment(parts[0], None, *parts[1:], machine, 0)
    assert told in why_not_stacked(config, experiment)


def test_the_quick_way_to_compose_gives_what_hydra_does():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        register()
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("train", ["dataset=digits", "seed=7"], run_mode=RunMode.MULTIRUN)
        composer = Composer(loader, master)
        for overrides in (
            ["regularizer=pathprox", "regularizer.strength=1e-3", "seed=3"],
            ["regularizer=pathprox", "regularizer.strength=1e-2", "seed=4", "train.steps=5"],
            ["regularizer=l1", "regularizer/over_time=early", "regularizer.over_time.epochs=3"],
            ["+optimizer.dampening=0.1", "optimizer.lr=2"],
            ["lr_schedule=multistep", "lr_schedule.milestones=[1,2]", "paths.runs=elsewhere"],
            ["~lr_schedule.name", "lr_schedule=cosine"],
            ["lr_schedule=multistep", "lr_schedule.milestones=[]"],
            [
                "train.clip_norm=null",
                "dataset.per_class=null",
                "model.width=-3",
                "optimizer.lr=1e-3",
                "optimizer.momentum=inf",
            ],
            ["dataset.augment={crop:4,flip:true}", "dataset.augment.crop=2"],
            ["dataset.augment={cutout:8,flip:null}", "dataset.augment={}"],
            ["paths.runs='a, b=c: {d}'", 'paths.data="it\'s \\"quoted\\""', "model.name='3'", "optimizer.name=''"],
            ["optimizer.lr=${train.batch_size}", "paths.runs=${paths.data}/${seed}"],
            ["seed=1", "seed=2", "regularizer.strength=[1e-3,null,'x',[2]]"],
        ):
            expected = loader.load_sweep_config(master, overrides)
            with open_dict(expected):
                del expected["hydra"]
            assert OmegaConf.to_container(composer(overrides)) == OmegaConf.to_container(expected)
            assert composer(overrides) == expected


@pytest.mark.parametrize(
    "override", ["model.wdth=8", "train.nothing.at.all=1", "seed.value=1", "model.width=${", "x=1"]
)
def test_the_quick_way_to_compose_refuses_what_hydra_does(override):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        register()
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("train", ["dataset=digits"], run_mode=RunMode.MULTIRUN)
        with pytest.raises(HydraException) as of_hydra:
            loader.load_sweep_config(master, [override])
        with pytest.raises(HydraException) as ours:
            Composer(loader, master)([override])
        assert type(ours.value) is type(of_hydra.value) and explain(ours.value) == explain(of_hydra.value)
