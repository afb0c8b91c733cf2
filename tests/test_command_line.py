"""The command line as a user sees it: sweeps, help, and one clear line for every mistake."""

import json
import re

import pytest

TINY = ("train.steps=10", "train.log_every=10", "train.eval_every=10", "model.width=8", "logger=disabled")


def test_help_and_cfg_job_print_and_train_nothing(command, tmp_path):
    help_text = command("--help")
    assert help_text.returncode == 0 and "regularizer: cautious, coherent, cpr, decoupled," in help_text.stdout
    config = command("--cfg", "job", "regularizer=l2")
    assert config.returncode == 0 and "_target_: wdlab.regularizers.L2.for_model" in config.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_runs_every_combination_sums_up_and_is_not_run_again(shell, command, tmp_path):
    sweep = ("-m", "dataset=digits", "model=mlp", "regularizer=l2,pathprox", "seed=0,1,2", *TINY)
    first = shell(*sweep)
    assert first.returncode == 0, first.stderr
    assert "6 runs: 0 finished before, 6 to do" in first.stdout and "sweep: 6 done" in first.stdout
    assert re.search(r"-l2-\w+: started, job 2: dataset=digits model=mlp regularizer=l2 seed=1 ", first.stdout)
    assert first.stdout.endswith("\nrecords: results/runs; as a table: wdlab.analysis.load\n")
    assert len(list((tmp_path / "results" / "runs").iterdir())) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    again = command(*sweep)
    assert again.returncode == 0 and "6 runs: 6 finished before, 0 to do" in again.stdout
    assert "started" not in again.stdout


def test_a_sweep_continues_after_a_bad_run_names_it_and_fails(command):
    ended = command("-m", "optimizer.lr=0.1,1e30", "seed=0,1", *TINY)
    assert ended.returncode == 1
    assert "sweep: 2 diverged, 2 done" in ended.stdout
    assert len(re.findall(r"^  digits-mlp-sgd-none-\w+: diverged, step 10$", ended.stdout, re.MULTILINE)) == 2
    assert ended.stderr.strip() == "error: 2 of 4 runs did not end well; see above"


def test_a_job_that_cannot_even_start_is_named(command, tmp_path):
    assert command(*TINY).returncode == 0
    (directory,) = (tmp_path / "results" / "runs").iterdir()
    (directory / "status.json").write_text('{"status": "running"}')  # as after a kill
    (directory / "lock").unlink()
    (directory / "lock").mkdir()
    ended = command("-m", "seed=0,1", *TINY)
    assert ended.returncode == 1 and "1 done, 1 stale" in ended.stdout
    assert f"  {directory.name}: stale, paths.runs=results/runs: cannot be written, [Errno 21]" in ended.stdout


def test_paired_settings_come_from_a_list_of_jobs(command, tmp_path):
    jobs = [["optimizer.lr=0.1", "regularizer.strength=1e-3"], ["optimizer.lr=0.2", "regularizer.strength=1e-4"]]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    ended = command("-m", "hydra.sweeper.jobs=jobs.json", "regularizer=l2", "seed=0,1", *TINY)
    assert ended.returncode == 0 and "sweep: 4 done" in ended.stdout


BAD = {
    "regularizer=foo": "regularizer=foo: does not exist; available: cautious, coherent, cpr, decoupled, delayed",
    "regularizer.strenght=1": "regularizer.strenght: unknown key; did you mean strength? allowed: strength, scope",
    "regularizer.strength=-1": "regularizer.strength=-1: must be a finite number >= 0",
    "dataset=mnist": "dataset=mnist: not found under data and the download failed (<urlopen error",
    "optimizer.lr=fast": "optimizer.lr=fast: must be a number",
    "train.steps=0": "train.steps=0: must be a whole number between 1 and",
    "train.batch_size=5000": "train.batch_size=5000: must be between 1 and 1200, the training examples",
    "model.depth=1": "model.depth=1: must be a whole number >= 2",
    "seed=-1": "seed=-1: must be a whole number between 0 and",
    "dataset.val_size=abc": "dataset.val_size=abc: must be a whole number >= 1",
    "+dataset.pre_class=10": "dataset.pre_class: unknown key; allowed:",
    "paths.runs=null": "paths.runs=None: must be a folder",
    "runtime.device=tpu": "runtime.device=tpu: must be one of auto, cpu, cuda",
    "+train.epochs=3": "train.epochs: unknown key; allowed: steps, batch_size, log_every, eval_every",
    "~model": "model: is missing",
    "regularizer=early regularizer.over_time.steps=5": "regularizer.over_time.epochs=5, steps=5: give exactly one",
    "regularizer/over_time=early": "regularizer/over_time: Early(epochs=5) has no strength to change with regular",
    "regularizer=l2 regularizer.over_time.epochs=5": "regularizer.over_time.epochs: no over_time has been chosen",
    "regularizer/over_time=soon": "regularizer/over_time=soon: does not exist; available: coherent, con",
    "regularizer=l1 regularizer.over_time=early": "regularizer.over_time='early': must be an OverTime; in a",
    "regularizer=l1 regularizer.route=first": "regularizer.route='first': needs Adam or AdamW, got SGD",
    "regularizer=pnorm regularizer.p=0": "regularizer.p=0: must be a finite number > 0",
    "optimizer=padam optimizer.p=-1": "optimizer.p=-1: must be a finite number > 0",
    "regularizer=scheduled optimizer.momentum=1.0": "regularizer.momentum=1.0: must be less than 1 for a scheduled",
    "dataset.shape=null": "dataset.shape=None: must be channels, height and width, or the context of a text",
    "dataset.shape=[1,8,8.0]": "dataset.shape=[1, 8, 8.0]: must be channels, height and width",
    "dataset.classes=ten": "dataset.classes=ten: must be a whole number >= 2",
    "dataset.std=[inf]": "dataset.std=[inf]: must be a list with a number > 0 per channel",
    "dataset.mean=[nan]": "dataset.mean=[nan]: must be a list with a number per channel",
    "dataset.label_noise=2": "dataset.label_noise=2: must be null or a share between 0 and 1",
    "dataset.train_size=99999": "dataset.train_size=99999: must be null or between 1 and 1200",
    "dataset.augment={crop:9}": "dataset.augment.crop=9: must be null or a whole number below 8",
    "dataset.augment={padding:[zero]}": "dataset.augment.padding=['zero']: must be zero or reflect",
    "dataset.augment={rotate:3}": "dataset.augment.rotate: unknown key; allowed: crop, padding, flip, rotation, cutout",
    "dataset.augment={cutout:9}": "dataset.augment.cutout=9: must be null or a whole number up to 8",
    "+dataset.source=../x": "dataset.source=../x: must be a name",
    "~dataset.mean": "dataset.mean: is missing",
    "seed=[1]": "seed=[1]: must be a whole number",
    "runtime.precision=[bf16]": "runtime.precision=['bf16']: must be one of fp32, tf32, bf16",
    "runtime.precision=tf32 runtime=cpu": "runtime.precision=tf32: only on a CUDA device",
    "runtime.threads=true": "runtime.threads=True: must be null or a whole number between 1 and 1024",
    "runtime.threads=1000000": "runtime.threads=1000000: must be null or a whole number between 1 and 1024",
    "runtime.compile=maybe": "runtime.compile=maybe: must be true or false",
    "runtime.channels_last=true": "runtime.channels_last=True: must be one of auto, never",
    "train.clip_norm=-1": "train.clip_norm=-1: must be null or a number > 0",
    "train.label_smoothing=1": "train.label_smoothing=1: must be null or a number from 0 to below 1",
    "train.average_decay=1": "train.average_decay=1: must be null or a number between 0 and 1",
    "train.sharpness_every=0": "train.sharpness_every=0: must be null or a whole number between 1",
    "model=resnet18 model.width=4 train.batch_size=1": "train.batch_size=1: is too small, Expected more than 1 value",
    "model.name=a/b": "model.name=a/b: must be a name",
    "model._target_=null": "model._target_=None: must be the name of a class or a function",
    "model.name=mine model._target_=wdlab.models.Nope": "model: ",
    "regularizer.name=l3 regularizer._target_=wdlab.L3": "regularizer: Error locating target 'wdlab.L3': Mod",
    "model._target_=torch.nn.Linear": "model._target_=torch.nn.Linear: needs a name of its own, model.name=mlp is",
    "model.width=null": "model.width=None: must be given",
    "train=3": "train=3: must be a group of keys",
    "lr_schedule=cosine lr_schedule.warmup_epochs=-1": "lr_schedule.warmup_epochs=-1: must be a number >= 0",
    "regularizer=[": "command line: regularizer=[: cannot be read as key=value, no viable alternative at input '['",
    "optimizer=sgd optimizer=adam": "optimizer=adam: optimizer=sgd is given too; give one of them",
    "~optimizer.lr": "optimizer.lr: is missing",
    "fail_fast=soon": "fail_fast=soon: must be true or false",
    "-m hydra/launcher=cluster": "hydra/launcher=cluster: does not exist; available: joblib, local, slurm, stacked",
    "hydra/launcher=joblib": "hydra/launcher=joblib: is for sweeps; give -m too",
    "hydra.sweeper.jobs=jobs.json": "hydra.sweeper.jobs=jobs.json: is for sweeps; give -m too",
    "--nothing": "command line: unrecognized arguments: --nothing",
    "seed=1 -m regularizer=l2,l1": "command line: unrecognized arguments: regularizer=l2,l1; options such as -m stand",
    "seed=0,1": "seed=0,1: several values are for a command line with -m; a list is key=[a,b], a text key='a,b'",
    "seed=range(3)": "seed=range(3): several values are for a command line with -m; a list is",
    "optimizer.lr=interval(1e-3,1)": "optimizer.lr=interval(1e-3,1): is a search; give -m and hydra.sweeper.trials=16",
    "trials=4": "trials: unknown key; did you mean hydra.sweeper.trials? allowed: seed, train",
    "-m trials=4": "trials: unknown key; did you mean hydra.sweeper.trials? allowed: seed, train",
    "-m optimizer.lr=[interval(0,1),1]": "optimizer.lr=[interval(0,1),1]: an interval cannot be inside a list",
    "=3": "command line:",
}


BAD_SWEEPS = ("regularizer.strength=1e-4,-1", "seed=0,1,nought", "hydra.sweeper.jobs=nowhere.json")
IN_A_SHELL = ("regularizer.strength=-1", "optimizer.lr=fast", "--nothing")  # refused by a method, by train, by argparse


@pytest.mark.parametrize("override", BAD)
def test_bad_input_is_one_clear_line_before_training(command, tmp_path, override):
    check_refused(command(*override.split()), BAD[override], tmp_path)


@pytest.mark.parametrize("override", IN_A_SHELL)
def test_a_shell_prints_one_clear_line_for_bad_input(shell, tmp_path, override):
    check_refused(shell(override), BAD[override], tmp_path)


@pytest.mark.parametrize("sweep", BAD_SWEEPS)
def test_a_bad_job_stops_a_sweep_before_its_first_run(command, tmp_path, sweep):
    check_refused(command("-m", "regularizer=l2", sweep), "", tmp_path)


def test_a_shell_prints_a_bad_job_before_its_first_run(shell, tmp_path):
    check_refused(shell("-m", "regularizer=l2", BAD_SWEEPS[0]), "regularizer.strength=-1: must be a finite", tmp_path)


def check_refused(ended, line: str, folder) -> None:
    """One line on standard error, exit code 2, and nothing else anywhere."""
    assert ended.returncode == 2
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: {line}")
    assert ended.stdout == "" and list(folder.iterdir()) == []


def test_a_truncated_checkpoint_is_one_clear_line(command, tmp_path):
    assert command(*TINY).returncode == 0
    (directory,) = (tmp_path / "results" / "runs").iterdir()
    (directory / "status.json").write_text('{"status": "running"}')
    whole = (directory / "checkpoint.pt").read_bytes()
    (directory / "checkpoint.pt").write_bytes(whole[:1000])
    ended = command(*TINY)
    assert ended.returncode == 2 and len(ended.stderr.strip().splitlines()) == 1
    assert re.search(r"checkpoint\.pt: damaged, .*delete it to resume from the start", ended.stderr)
