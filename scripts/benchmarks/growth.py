"""The start-up of a run, and how time and memory of a stacked sweep grow with the number of its runs."""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.timing import RATIO, Case, Options, Page, Part, compared, part
from wdlab.records.identity import PROJECT

START_TARGET = 1.3  # largest ratio of the start of a run to the import of torch and the making of an optimizer
GROWTH_TARGET = 1.1  # largest ratio of the time per run
COUNTS, QUICK_COUNTS = (1, 32, 100, 300, 1000), (2, 4)  # numbers of runs; the time is reported for the last three
STEPS = 200
REPEATS, START_REPEATS = 2, 5
TORCH = "import torch; torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1); open('made', 'w').close()"
TRAIN, SMALL = ("-m", "wdlab.train"), ("dataset=digits", "model=mlp", "runtime.device=cpu", "logger=disabled")
ONE = (*TRAIN, *SMALL, "train.steps=1")
SWEEP = (*TRAIN, "-m", *SMALL, "hydra/launcher=stacked", "model.width=32", "regularizer=l2")
MIB = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS, elsewhere in KiB


class Cost(NamedTuple):
    """The cost of a process: its seconds from start to end, the CPU's seconds, and its largest memory in MiB."""

    seconds: float
    cpu_seconds: float
    mib: float


def table(options: Options) -> Page | None:
    """Return the costs of commands, each a process of its own; None on a GPU."""
    if options.device.type != "cpu":
        return None
    growth, remarks = _growth(options.at_most(REPEATS))
    starts = [] if options.quick else [_start(options.at_most(START_REPEATS))]
    return Page("Start-up, and growth with the number of runs", [*starts, *growth], remarks)


def _start(options: Options) -> Part:
    """Return the time from the start of Python to the first step of a run, compared with what torch alone needs."""
    problem = f"`python {' '.join(ONE)}`, from the start of Python to the log line of the first step"
    base = Case("import torch, make an optimizer", lambda: _seconds_until("made", "-c", TORCH), timed=True)
    first = Case(
        "first step of a run",
        lambda: _seconds_until("runs/*/metrics.jsonl", *ONE, "paths.runs=runs"),
        START_TARGET,
        timed=True,
    )
    return part("Start-up", problem, base, [first], options, RATIO)


def _seconds_until(pattern: str, *words: str) -> float:
    """Return the seconds from the start of ``python <words>`` to the last change of the file that matches a pattern."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        _run(folder, *words)
        (made,) = Path(folder).glob(pattern)
        return made.stat().st_mtime - start


def _run(folder: str, *words: str) -> Cost:
    """Run ``python <words>`` in a folder and return its cost."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, *words]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / MIB)


def _sweep(count: int, steps: int) -> Cost:
    """Return the cost of a stacked sweep of ``count`` runs that differ in their seeds."""
    with tempfile.TemporaryDirectory() as folder:
        return _run(folder, *SWEEP, f"seed=range({count})", f"train.steps={steps}", "paths.runs=runs")


def _growth(options: Options) -> tuple[list[Part], list[str]]:
    """Return tables of the time per run by the number of runs, and remarks on the CPU time and the memory."""
    counts, steps = options.sized((COUNTS, STEPS), (QUICK_COUNTS, 20))
    costs: dict[int, list[Cost]] = {count: [] for count in counts}
    for repeat in range(options.repeats):
        for count in counts:
            costs[count].append(_sweep(count, steps))
        print(f"growth: repeat {repeat + 1} of {options.repeats}", file=sys.stderr, flush=True)
    seconds = {count: [cost.seconds for cost in costs[count]] for count in counts}
    command = " ".join(("python", *SWEEP, f"train.steps={steps}", "seed=range(n)"))
    problem = f"`{command}` for n runs, from the start of Python to the summary"
    per_run = {f"{count} runs": [each / count for each in seconds[count]] for count in counts[-3:]}
    parts = [_compared("Time per run", problem, per_run, options, GROWTH_TARGET)]
    if not options.quick:  # differences of tiny sizes are noise
        further = {
            f"from {low} to {high} runs": [
                (after.cpu_seconds - before.cpu_seconds) / (high - low)
                for before, after in zip(costs[low], costs[high], strict=True)
            ]
            for low, high in itertools.pairwise(counts[-3:])
        }
        parts.append(_compared("CPU time per further run", problem, further, options))
    cpu = ", ".join(f"{min(cost.cpu_seconds for cost in costs[count]):.2f} s for {count}" for count in counts)
    memory = ", ".join(f"{max(cost.mib for cost in costs[count]):.0f} MiB for {count}" for count in counts)
    return parts, [
        f"CPU time, which other programs lengthen less, by number of runs; the least over the repeats: {cpu}.",
        f"Largest memory of the process, by number of runs: {memory}.",
    ]


def _compared(
    title: str, problem: str, seconds: dict[str, list[float]], options: Options, target: float | None = None
) -> Part:
    """Return a table that compares the times of all cases with the first one; the last one has the target."""
    names = list(seconds)
    cases = [Case(name, lambda: None, target if name == names[-1] else None, timed=True) for name in names]
    rows = [compared(case, seconds[case.what], cases[0], seconds[names[0]], RATIO, (1, "runs")) for case in cases]
    return Part(title, problem, RATIO, options.repeats, rows, (1, "runs"))
