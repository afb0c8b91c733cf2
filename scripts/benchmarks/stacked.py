"""The speed-up of a sweep of MLPs as one batched program (``hydra/launcher=stacked``) over run after run."""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from benchmarks import functional
from benchmarks.setups import TORCH_DEFAULTS, Setup
from benchmarks.timing import SPEED_UP, Case, Options, Page, Part, part
from wdlab import loop
from wdlab.build import build_experiment, build_parts, predictions_per_batch
from wdlab.data import Data
from wdlab.engine import device, fused
from wdlab.engine.experiment import Experiment
from wdlab.engine.one_run import OneRun
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import PROJECT, compose_config, run_name
from wdlab.records.recorder import Recorder
from wdlab.records.wandb_mirror import Mirror
from wdlab.settings import TrainSettings, read
from wdlab.stacked.program import Stack, StackedRun

TRAINING_TARGET, END_TO_END_TARGET, WIDE_TARGET = 12, 5, 0.98
RUNS, WIDE_RUNS = 32, 8
FEW, FEWER = 5, 3  # repeats
NEVER = 10**6  # more than the steps or seconds of any run here


def table(options: Options) -> Page:
    """Return the times of sweeps, stacked and run after run, with records in temporary folders."""
    parts = [_training(options), _wide(options), *functional.parts(options)]
    if not options.quick:  # every launch takes seconds
        parts.append(_end_to_end(options))
    return Page("Sweeps of MLPs, stacked", parts)


class Sweep:
    """Runs that differ in seed and L2 strength, trained side by side or one by one. Only the training is timed.

    Args:
        options: the options of the command line.
        count: number of runs.
        overrides: overrides of the config of all runs.
        data: the data set of all runs; None loads the data set of the config.
    """

    def __init__(self, options: Options, count: int, overrides: tuple[str, ...], data: Data | None = None) -> None:
        places = f"runtime.device={options.device.type}", "logger=disabled", "regularizer=l2"
        points = itertools.product(range(count), (1e-4, 1e-3, 1e-2, 1e-1))
        self._configs: list[DictConfig] = [
            compose_config([*places, *overrides, f"regularizer.strength={strength}", f"seed={seed}"])
            for seed, strength in itertools.islice(points, count)
        ]
        self._options, self._data = options, data

    def side_by_side(self) -> float:
        """Return the seconds that a step of all runs takes if they are trained side by side."""

        def fit(members: list[StackedRun], settings: TrainSettings) -> None:
            loop.fit(Stack(members, settings), settings, NEVER)

        return self._timed(fit, together=True)

    def one_by_one(self) -> float:
        """Return the seconds that a step of all runs takes if they are trained one after another."""

        def fit(members: list[StackedRun], settings: TrainSettings) -> None:
            for member in members:
                loop.fit(OneRun(member.experiment, settings, member.run, member.recorder), settings, NEVER)

        return self._timed(fit)

    def _experiment(self, config: DictConfig, previous: Experiment | None, together: bool) -> Experiment:
        if self._data is None:
            return build_experiment(config, previous, len(self._configs) * together)
        model, optimizer, regularizer, lr_factor = build_parts(config)
        examples = predictions_per_batch(config) * (len(self._configs) if together else 1)
        machine = device.set_up(config["runtime"], model, together, examples)
        machine.place(model)
        fused.choose_step(model, optimizer, machine.fused)
        return Experiment(model, self._data, optimizer, regularizer, lr_factor, machine, config["seed"])

    def _timed(self, fit: Callable[[list[StackedRun], TrainSettings], object], together: bool = False) -> float:
        TORCH_DEFAULTS()
        with tempfile.TemporaryDirectory() as folder:
            members, previous = [], None
            for config in self._configs:
                experiment = self._experiment(config, previous, together)
                previous = experiment
                run = RunDirectory(folder, run_name(config))
                run.create()
                members.append(StackedRun(experiment, run, Recorder(run.metrics, 0, Mirror())))
            settings = read(self._configs[0]).train
            self._options.synchronize()
            start = time.perf_counter()
            fit(members, settings)
            self._options.synchronize()
            seconds = time.perf_counter() - start
            for member in members:
                member.recorder.close()
        return seconds / settings.steps


def _training(options: Options) -> Part:
    count, steps, every = options.sized(RUNS, 3), options.sized(1000, 20), options.sized(100, 10)
    shape = ("dataset=digits", "model=mlp", "model.width=64", "model.depth=4", f"train.steps={steps}")
    as_usual = Sweep(options, count, (*shape, f"train.log_every={every}", f"train.eval_every={every}"))
    alone = Sweep(options, count, (*shape, f"train.log_every={NEVER}", f"train.eval_every={NEVER}"))
    problem = (
        f"a step of {count} runs of digits with a ReLU MLP, 4 layers, width 64, batches of 64, L2 of four strengths, "
        f"{steps} steps; records, metrics, evaluations of the whole splits every {every} steps, checkpoint at the end"
    )
    cases = [
        Case("stacked", as_usual.side_by_side, TRAINING_TARGET, timed=True),
        Case("stacked, records at both ends only", alone.side_by_side, timed=True),
    ]
    base = Case("one after another", as_usual.one_by_one, timed=True)
    return part("Training", problem, base, cases, options.at_most(FEW), SPEED_UP, (count, "steps of a run"))


def _wide(options: Options) -> Part:
    count, steps, width = options.sized(WIDE_RUNS, 2), options.sized(20, 4), options.sized(400, 16)
    shape = ("dataset=mnist", "model=mlp", f"model.width={width}", "model.depth=6", "train.batch_size=200")
    length = (f"train.steps={steps}", f"train.log_every={NEVER}", f"train.eval_every={NEVER}")
    sweep = Sweep(options, count, (*shape, *length), Setup(options, *shape).data(1000, 100))
    problem = f"a step of {count} runs on images as MNIST, ReLU MLP, 6 layers, width {width}, batches of 200"
    base = Case("one after another", sweep.one_by_one, timed=True)
    cases = [Case("stacked", sweep.side_by_side, WIDE_TARGET, timed=True)]
    return part("Wide networks", problem, base, cases, options.at_most(FEW), SPEED_UP, (count, "steps of a run"))


def _end_to_end(options: Options) -> Part:
    seeds, steps = 8, 1000
    command = (
        *("-m", "wdlab.train", "-m", "dataset=digits", "model=mlp", "regularizer=l2", f"train.steps={steps}"),
        "regularizer.strength=1e-4,1e-3,1e-2,1e-1",
        *(f"seed={','.join(map(str, range(seeds)))}", f"runtime.device={options.device.type}", "logger=disabled"),
    )
    problem = (
        f"`python {' '.join(command)}` with another hydra/launcher: everything from the start of Python to the "
        f"summary, {4 * seeds} runs"
    )
    base = Case("local", partial(seconds_of, (*command, "hydra/launcher=local")), timed=True)
    cases = [
        Case("stacked", partial(seconds_of, (*command, "hydra/launcher=stacked")), END_TO_END_TARGET, timed=True),
        Case("joblib", partial(seconds_of, (*command, "hydra/launcher=joblib")), timed=True),
    ]
    return part("From end to end", problem, base, cases, options.at_most(FEWER), SPEED_UP, (4 * seeds, "runs"))


def seconds_of(words: tuple[str, ...]) -> float:
    """Return the seconds of the command ``python <words>``, which records its runs in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(PROJECT)}
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, *words, f"paths.runs={Path(folder) / 'runs'}"],
            cwd=folder,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return time.perf_counter() - start
