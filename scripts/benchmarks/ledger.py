"""The cost of reading many runs: into the table of ``analysis.load``, and into the list of ``wdlab.runs``."""

import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.timing import RATIO, Case, Options, Page, Part, part
from wdlab import runs
from wdlab.analysis import cache, load
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import PROJECT, compose_config

RUNS = (2_500, 5_000, 10_000)
LINES = 5  # log lines of a run
METRICS = 25  # metrics of a log line
BOUND = 10.0  # largest number of seconds that analysis.load may take for the largest folder
REPEATS = 3
PEAK = """
import re, sys
from pathlib import Path
from wdlab.analysis import load
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
start = peak()
load(sys.argv[1])
print(peak() - start)
"""


def table(options: Options) -> Page:
    """Return the times of reading runs, which are generated in a temporary folder without training."""
    options = options.at_most(REPEATS)
    counts = [options.sized(count, count // 250) for count in RUNS]
    with tempfile.TemporaryDirectory() as folder:
        roots = {count: Path(folder) / str(count) for count in counts}
        for count, root in roots.items():
            generate(root, count)
        parts = [_part(count, root, options, is_largest=count == counts[-1]) for count, root in roots.items()]
        measured = options.sized(roots, {counts[-1]: roots[counts[-1]]})
        remarks = [_memory(measured)] if sys.platform == "linux" else []
    return Page("The cost of reading many runs", parts, remarks)


def generate(root: Path, count: int) -> None:
    """Write ``count`` run directories of a random search, with random learning rates, strengths and metrics."""
    generator = random.Random(0)
    config = compose_config(["regularizer=l2"])
    for seed in range(count):
        directory = RunDirectory(root, f"digits-mlp-sgd-l2-{generator.getrandbits(48):012x}")
        directory.create()
        config["seed"] = seed
        config["optimizer"]["lr"], config["regularizer"]["strength"] = generator.random(), generator.random() / 1000
        directory.write_config(config)
        lines = [{f"metric/{m}": generator.random() for m in range(METRICS)} | {"step": 100 * n} for n in range(LINES)]
        directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        directory.write_status("done", step=100 * (LINES - 1))


def _part(count: int, root: Path, options: Options, is_largest: bool) -> Part:
    """Return the times of reading the ``count`` runs in the folder ``root``; only the largest folder has a target."""
    base = Case(f"the bound, {BOUND:g} s", lambda: BOUND, timed=True)
    cases = [
        _case("analysis.load, for the first time", _forget, load, root, target=1.0 if is_largest else None),
        _case("analysis.load, again", Path.exists, load, root),
        _case("wdlab.runs", Path.exists, lambda folder: list(runs.table_lines(runs.entries(folder), None)), root),
    ]
    problem = f"{count} runs, each of {LINES} lines of {METRICS} metrics, each with its own config; files in memory"
    return part(f"{count} runs", problem, base, cases, options, RATIO, (count, "runs"))


def _forget(root: Path) -> None:
    """Delete the cache of a folder of runs."""
    (root / cache.CACHE).unlink(missing_ok=True)


def _case(
    what: str, prepare: Callable[[Path], Any], read: Callable[[Path], Any], root: Path, target: float | None = None
) -> Case:
    """Return a case that calls ``prepare(root)`` and then times ``read(root)``."""

    def seconds() -> float:
        prepare(root)
        start = time.perf_counter()
        read(root)
        return time.perf_counter() - start

    return Case(what, seconds, target, timed=True)


def _memory(roots: dict[int, Path]) -> str:
    """Return a remark on the peak memory of a first load of each folder; ``roots``: folders by number of runs."""
    peaks = []
    for count, root in roots.items():
        _forget(root)
        command = [sys.executable, "-c", PEAK, str(root)]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
        peaks.append(f"{math.ceil(int(done.stdout) / 1024)} MiB for {count} runs")
    return f"Largest memory of a first load, above that of the imports: {', '.join(peaks)}."
