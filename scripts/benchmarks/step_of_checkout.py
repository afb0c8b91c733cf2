"""Time the steps of a case with the ``wdlab`` that Python finds, and print the seconds of a step. See ``commits``.

PYTHONPATH=CHECKOUT python scripts/benchmarks/step_of_checkout.py "24 MLPs, L2"

With ``--profile`` it also prints which operations take the time. With ``--products`` it prints the seconds of the
batched matrix products of a step alone.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from unittest import mock

import wdlab  # noqa: F401, before torch: sets how long torch's threads spin while they wait

# isort: split
import torch
from omegaconf import DictConfig
from torch.profiler import ProfilerActivity, profile

from wdlab import data
from wdlab.build import build_experiment
from wdlab.engine.one_run import OneRun
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import compose_config, run_name
from wdlab.records.recorder import Recorder
from wdlab.records.wandb_mirror import Mirror
from wdlab.settings import read
from wdlab.stacked.program import Stack, StackedRun

NEVER = 10**6  # more than the steps of a measurement
WARM, STEPS, REPEATS = (1, 1, 2) if "--quick" in sys.argv else (30, 60, 7)
PLACE = ("runtime.device=cpu", "logger=disabled", f"train.steps={NEVER}")
QUIET = (*PLACE, f"train.log_every={NEVER}", f"train.eval_every={NEVER}")
SMALL = ("dataset=digits", "model=mlp", "model.width=128", "model.depth=6", "train.batch_size=50")
WIDE = ("dataset=mnist", "model=mlp", "model.width=400", "model.depth=6", "train.batch_size=200")
# name of a case -> number of runs (1: trained alone), overrides
CASES = {
    "24 MLPs, L2": (24, (*SMALL, "regularizer=l2", "regularizer.strength=1e-3")),
    "24 MLPs, PathProx": (24, (*SMALL, "regularizer=pathprox", "regularizer.strength=1e-3")),
    "24 MLPs, L2 on Adam": (24, (*SMALL, "optimizer=adam", "regularizer=l2", "regularizer.strength=1e-3")),
    "one MLP 400 wide, Adam": (1, (*WIDE, "optimizer=adam", "regularizer=none")),
}


def seconds_of_a_step(runs: int, overrides: tuple[str, ...]) -> float:
    """Return the median seconds of a step of a stack of ``runs`` runs, or of one run that is trained alone.

    Data sets that are not embedded are replaced by random images.
    """
    load = data.load
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(data, "load") as replaced:
        replaced.side_effect = lambda dataset, *place: (
            load(dataset, *place) if dataset["name"] == "digits" else _random_images(dataset)
        )
        members, previous = [], None
        for seed in range(runs):
            config = compose_config([*QUIET, *overrides, f"seed={seed}"])
            previous = build_experiment(config, previous, runs if runs > 1 else 0)
            directory = RunDirectory(folder, run_name(config))
            directory.create()
            members.append(StackedRun(previous, directory, Recorder(directory.metrics, 0, Mirror()), "one method"))
        settings, one = read(config).train, members[0]
        alone = runs == 1
        program = OneRun(one.experiment, settings, one.run, one.recorder) if alone else Stack(members, settings)
        with program:
            program.begin()
            steps = iter(range(NEVER))

            def take() -> None:
                step = next(steps)
                program.backward(step)
                program.update(step)

            times = [_mean_seconds(take, count) for count in (WARM, *[STEPS] * REPEATS)]
            if "--profile" in sys.argv:
                with profile(activities=[ProfilerActivity.CPU]) as profiled:
                    _mean_seconds(take, STEPS)
                print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=10))
        for member in members:
            member.recorder.close()
    return statistics.median(times[1:])


def seconds_of_products(runs: int, overrides: tuple[str, ...]) -> float:
    """Return the median seconds that the matrix products of a step of a stack take, without the rest of the step.

    Per layer these are the forward product and, in the backward pass, that of the weights' gradient and, except for the
    first layer, that of the inputs' gradient.
    """
    config = compose_config([*PLACE, *overrides])
    experiment = build_experiment(config, None, runs)  # sets torch's number of threads
    shapes = [p.shape for p in experiment.model.parameters() if p.dim() == 2]
    weights = [torch.randn(runs, *shape) for shape in shapes]
    inputs = [torch.randn(runs, config["train"]["batch_size"], shape[1]) for shape in shapes]
    slopes = [torch.randn(runs, config["train"]["batch_size"], shape[0]) for shape in shapes]
    gradients = [torch.empty_like(w) for w in weights]

    def step() -> None:
        for w, x in zip(weights[:-1], inputs, strict=False):
            torch.bmm(x, w.transpose(1, 2))
        torch.bmm(weights[-1], inputs[-1].transpose(1, 2))  # faster for few classes
        for k in reversed(range(len(weights))):
            torch.bmm(slopes[k].transpose(1, 2), inputs[k], out=gradients[k])
            if k:
                torch.bmm(slopes[k], weights[k])

    times = [_mean_seconds(step, count) for count in (WARM, *[STEPS] * REPEATS)]
    return statistics.median(times[1:])


def _random_images(dataset: DictConfig) -> data.Data:
    """Return splits of 1,000 random images of a data set's shape."""
    pixels = torch.randint(256, (1000, *dataset["shape"]), dtype=torch.uint8)
    labels = torch.randint(dataset["classes"], (1000,))
    split = data.Images(pixels, labels, list(dataset["mean"]), list(dataset["std"]), torch.device("cpu"), None)
    return data.Data(split, split, split, "random")


def _mean_seconds(step: Callable[[], object], count: int) -> float:
    """Return the mean seconds of ``count`` calls."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    of_case = seconds_of_products if "--products" in sys.argv else seconds_of_a_step
    print(of_case(*CASES[sys.argv[1]]))
