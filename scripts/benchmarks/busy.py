"""The slowdown by other work on the machine: commands timed alone, and next to one busy process per core."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from benchmarks.stacked import seconds_of
from benchmarks.timing import RATIO, Case, Options, Page, Part, part

TARGET = 2.5  # largest ratio of a command's time on the busy machine to its time alone
REPEATS = 3
SMALL = ("dataset=digits", "runtime.device=cpu", "logger=disabled", "train.log_every=200", "train.eval_every=200")
COMMANDS = {
    "24 MLPs of 6 x 128 in one stack": (
        *("-m", "hydra/launcher=stacked", "model=mlp", "model.width=128", "model.depth=6", "train.batch_size=50"),
        *("regularizer=l2", "regularizer.strength=1e-4,1e-3,1e-2,1e-1", "seed=0,1,2,3,4,5", "train.steps=2000"),
    ),
    "one ResNet-8": ("model=resnet8", "train.steps=1000"),
    "8 MLPs, one per core (joblib)": (
        *("-m", "hydra/launcher=joblib", "model=mlp", "model.width=128", "model.depth=6", "train.steps=4000"),
        "seed=0,1,2,3,4,5,6,7",
    ),
}


def table(options: Options) -> Page | None:
    """Return the times of the commands; None on a GPU, and with tiny sizes, which would time the start of Python."""
    if options.quick or options.device.type != "cpu":
        return None
    return Page("A busy machine", [_part(name, command, options) for name, command in COMMANDS.items()])


def _part(name: str, command: tuple[str, ...], options: Options) -> Part:
    """Return the times of one command, called ``name``; ``command`` has its arguments for ``wdlab.train``."""
    words = ("-m", "wdlab.train", *command, *SMALL)
    problem = f"`python {' '.join(words)}`, from the start of Python to its end"
    base = Case("alone", partial(seconds_of, words), timed=True)
    cases = [Case("next to one busy process per core", partial(_next_to_others, words), TARGET, timed=True)]
    return part(name, problem, base, cases, options.at_most(REPEATS), RATIO)


def _next_to_others(words: tuple[str, ...]) -> float:
    """Return the seconds of the command ``python <words>`` while every core is busy."""
    with busy_cores():
        return seconds_of(words)


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every core busy inside the context, with one process per core."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
