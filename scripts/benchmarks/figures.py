"""The time of each figure at ``cpu`` scale, extrapolated from a few steps of its runs, against its declared time."""

import os
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from joblib import Parallel, delayed
from omegaconf import DictConfig

from benchmarks.timing import RATIO, Comparison, Options, Page, Part
from wdlab import loop
from wdlab.analysis import declaration
from wdlab.build import build_experiment
from wdlab.engine.one_run import OneRun
from wdlab.records import recorder, wandb_mirror
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import compose_config, run_name

SCALE = "cpu"
TARGET = 1.5  # largest ratio of the extrapolated to the declared time
STEPS, FEW = 60, 10  # steps of the longer and of the shorter timed run
NEVER = 10**6  # more than the steps or seconds of any run here
START = 10.0  # seconds of a figure's command outside its runs


def table(options: Options) -> Page | None:
    """Return the times of all figures; None on a GPU, with tiny sizes, or if ``WDLAB_DATA`` is not set."""
    if options.quick or options.device.type != "cpu" or "WDLAB_DATA" not in os.environ:
        return None
    done: set[str] = set()
    rows = []
    for name in declaration.names():
        jobs = [job for job in declaration.figure_runs(declaration.read(name, SCALE), "unused")]
        new = {job.directory.name: job for job in jobs if job.directory.name not in done}
        done |= new.keys()
        if new:
            rows.append(_row(name, list(new.values())))
    problem = (
        f"all runs of a figure that no earlier figure has, one per core, extrapolated from {STEPS} steps and two "
        "evaluations of the last runs of each panel, one per core at the same time"
    )
    return Page(f"Times of the figures at {SCALE} scale", [Part("Figures", problem, RATIO, 1, rows)])


def _row(name: str, jobs: Sequence[declaration.FigureRun]) -> Comparison:
    cores = len(os.sched_getaffinity(0))
    panels: dict[str, list[declaration.FigureRun]] = {}
    for job in jobs:
        panels.setdefault(job.panel, []).append(job)
    seconds = START
    for panel, alike in panels.items():
        each = Parallel(n_jobs=cores)(delayed(_seconds_of_run)(alike[k].overrides) for k in range(-cores, 0))
        seconds += statistics.mean(each) * len(alike) / cores
        print(f"{name}: {panel}: {len(alike)} runs, {statistics.mean(each):.0f} s each", flush=True)
    declared = declared_minutes(name) * 60
    ratio, met = seconds / declared, "yes" if seconds <= TARGET * declared else "no"
    return Comparison(name, "declared time", seconds * 1e6, None, ratio, ratio, ratio, TARGET, met, f"{len(jobs)} runs")


def declared_minutes(name: str) -> float:
    """Return the time in minutes that the declaration of the figure ``name`` states for ``SCALE``."""
    text = declaration.read(name, SCALE)["at"]["time"]
    number, unit = re.search(r"(\d+) (s|minutes|hours)\b", text).groups()
    return float(number) * {"s": 1 / 60, "minutes": 1, "hours": 60}[unit]


def _seconds_of_run(overrides: Sequence[str]) -> float:
    """Return the seconds of a whole run with its evaluations, extrapolated from two short runs.

    The run is described by its config ``overrides``.
    """
    torch.set_num_threads(1)
    config = compose_config([*overrides, "runtime=cpu", "runtime.threads=1", "logger=disabled"])
    settings = config["train"]
    long, short = _fit(config, STEPS), _fit(config, FEW)
    step = max(0.0, (long - short) / (STEPS - FEW))
    evaluation = max(0.0, (short - FEW * step) / 2)
    return settings["steps"] * step + (settings["steps"] / settings["eval_every"] + 1) * evaluation


def _fit(config: DictConfig, steps: int) -> float:
    """Return the seconds of a run of ``steps`` steps, including one evaluation of all splits before and one after."""
    config = config.copy()
    config["train"].update({"steps": steps, "log_every": NEVER, "eval_every": NEVER})
    experiment = build_experiment(config)
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder), run_name(config))
        directory.create()
        records = recorder.Recorder(directory.metrics, 0, wandb_mirror.Mirror())
        start = time.perf_counter()
        loop.fit(OneRun(experiment, config["train"], directory, records), config["train"], NEVER)
        seconds = time.perf_counter() - start
        records.close()
    return seconds
