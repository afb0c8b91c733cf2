"""The time of a step of this checkout against the same step of another checkout (``--against``), in one sitting."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.step_of_checkout import CASES
from benchmarks.timing import RATIO, Case, Options, Page, part
from wdlab.records.identity import PROJECT

TARGETS = {"24 MLPs, L2": 0.55, "24 MLPs, PathProx": 0.45, "one MLP 400 wide, Adam": 0.75}
REPEATS = 7
PRODUCTS = "the matrix products of this step alone"
PROBLEM = (
    "a step that is not logged, each measurement in a process of its own; `python -m wdlab.train {overrides}`{runs}"
)


def table(options: Options) -> Page | None:
    """Return the times of a step in both checkouts; None without ``--against``."""
    if options.against is None:
        return None
    git = ["git", "-C", str(options.against), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    parts = []
    for name in CASES:
        base = Case(f"commit {commit}", partial(_seconds, options.against, name), timed=True)
        ours = Case("this commit", partial(_seconds, PROJECT, name), TARGETS.get(name), timed=True)
        runs, overrides = CASES[name]
        cases = [ours]
        if runs > 1:
            note = "no step can be shorter"
            cases.append(Case(PRODUCTS, partial(_seconds, PROJECT, name, "--products"), note=note, timed=True))
        stack = f", {runs} runs in one stack that differ in their seeds" if runs > 1 else ""
        problem = PROBLEM.format(overrides=" ".join(overrides), runs=stack)
        parts.append(part(name, problem, base, cases, options.at_most(REPEATS), RATIO))
    return Page("Steps of this commit against another", parts)


def _seconds(checkout: Path, name: str, *options: str) -> float:
    """Return the seconds of a step of a case with the ``wdlab`` of a checkout.

    Args:
        checkout: the folder of the checkout.
        name: the name of the case.
        options: further arguments of ``step_of_checkout``.
    """
    script = PROJECT / "scripts" / "benchmarks" / "step_of_checkout.py"
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, str(script), name, *options]  # with -m Python would find the wdlab of this checkout
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
