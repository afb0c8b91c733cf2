"""Make a figure: run what is missing, then write its table, picture and verdicts. Called by ``make reproduce-figN``.

python scripts/reproduce.py fig3 --scale quick
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from wdlab.analysis import declaration, figures, tables
from wdlab.errors import ConfigError, RunFailed, explain

LAUNCHERS = ("auto", "local", "joblib", "stacked", "slurm")


def main() -> None:
    """The command line; exit code 2 for bad input, 1 if runs failed."""
    parser = argparse.ArgumentParser(description="Run what is missing for a figure, then write its files.")
    parser.add_argument("figure", help="fig3, ...")
    parser.add_argument("--scale", default="quick", help=", ".join(declaration.SCALES))
    parser.add_argument(
        "--launcher",
        default="auto",
        help="auto: stacked for the MLPs of quick, else local on a GPU, joblib on a CPU; " + "; ".join(LAUNCHERS[1:]),
    )
    parser.add_argument("--logger", default="auto", help="auto, offline, online, disabled")
    parser.add_argument("--results", default="results", help="where tables, figures and claims go")
    arguments = parser.parse_args()
    try:
        reproduce(arguments.figure, arguments.scale, arguments.launcher, arguments.logger, Path(arguments.results))
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(1 if isinstance(error, RunFailed) else 2)


def reproduce(figure: str, scale: str, launcher: str, logger: str, results: Path) -> None:
    """Run what is missing, then write the figure's files and say what they say.

    Raises:
        WdlabError: for input that cannot be used.
        RunFailed: if runs failed, or another process still has some of them.
    """
    if launcher not in LAUNCHERS:
        raise ConfigError(f"LAUNCHER={launcher}: must be one of {', '.join(LAUNCHERS)}")
    declared = declaration.read(figure, scale)
    jobs = declaration.runs(declared, results / "runs")
    distinct = {job.directory.name: job for job in jobs}.values()  # panels may share a run
    missing = [job for job in distinct if not job.directory.finished]
    print(f"{figure} at {scale} scale: {len(distinct)} runs, {len(missing)} to do", flush=True)
    if missing:
        run_missing(missing, launcher, scale, logger, results)
    files, judged = figures.write(declared, jobs, results)
    tell(files, judged)


def launcher_of(job: declaration.FigureRun, asked: str, scale: str) -> str:
    """The launcher of a run; where none is asked for, small MLPs go side by side, else one run per core, or per GPU."""
    if asked != "auto":
        return asked
    if scale == "quick" and any(override.startswith("model=mlp") for override in job.overrides):
        return "stacked"
    return "local" if shutil.which("nvidia-smi") or (os.cpu_count() or 1) == 1 else "joblib"


def run_missing(missing: list[declaration.FigureRun], asked: str, scale: str, logger: str, results: Path) -> None:
    """Hand the runs to their launchers, to one after another.

    Raises:
        RunFailed: if some are not finished behind that.
    """
    by_launcher: dict[str, list[declaration.FigureRun]] = {}
    for job in missing:
        by_launcher.setdefault(launcher_of(job, asked, scale), []).append(job)
    for launcher, jobs in by_launcher.items():
        code = run_with(launcher, jobs, logger, results)
        left = [job.directory for job in jobs if not job.directory.finished]
        if left and code in (2, 130):
            sys.exit(code)  # it has said why
        if left:
            raise RunFailed(f"{len(left)} runs are not finished ({left[0].name}: {left[0].status}); no figure was made")


def run_with(launcher: str, jobs: list[declaration.FigureRun], logger: str, results: Path) -> int:
    """The exit code of ``python -m wdlab.train -m``, in a process of its own, which Ctrl-C can end in its own way."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "jobs.json"
        listed.write_text(json.dumps([list(job.overrides) for job in jobs]))
        command = [sys.executable, "-m", "wdlab.train", "-m", f"hydra.sweeper.jobs={listed}"]
        options = [f"hydra/launcher={launcher}", f"logger={logger}", f"paths.runs={results / 'runs'}"]
        return run_to_its_end([*command, *options])


def run_to_its_end(command: list[str]) -> int:
    """The exit code of a command that, on Ctrl-C or SIGTERM, is given the time to end in its own way."""
    process = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal has told the process itself
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def tell(files: tables.Files, judged: dict) -> None:
    """Print where the figure is and what its verdicts say."""
    print(f"\ntable    {files.table}\npicture  {files.picture}\nverdicts {files.verdicts}\n")
    exploratory = any(claim["exploratory"] for claim in judged["claims"])
    print(f"{judged['title']}, {judged['scale']} scale" + exploratory * ", exploratory: fewer than 5 seeds")
    for panel in judged["panels"].values():
        if "seeds" in panel:  # and not simulated
            print(f"  {panel['title']}: seeds {', '.join(map(str, panel['seeds']))}")
    print(textwrap.fill(f"Scale-downs: {judged['scale_down']}", 110))
    for claim in judged["claims"]:
        print(f"  {claim['verdict']:<13}{claim['panel']}: {claim['id']}: {figures.numbers(claim)}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
