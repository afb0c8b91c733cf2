"""Make a figure: train its missing runs, then write table, picture and verdicts. Called by ``make reproduce-figN``.

python scripts/reproduce.py fig3 --scale quick
python scripts/reproduce.py all --scale quick
python scripts/reproduce.py study1 --scale cpu --panels mnist_few,mnist_noisy

If the figure's files exist already, as the committed ones do, they are compared with and left alone: the new ones are
written to the folder ``local`` next to them, unless ``--update`` is given. With ``--panels`` only the runs of these
panels are trained. The rows of the other panels are those of the files that exist already. Their runs must be those
that are declared now, but earlier code may have trained them.
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
import traceback
from collections.abc import Sequence
from pathlib import Path

from wdlab import process
from wdlab.analysis import comparison, declaration, figures, panels, tables
from wdlab.errors import ConfigError, RunFailed, explain
from wdlab.settings import LOGGER_MODES

ALL = "all"  # in place of a figure's name
LOCAL = "local"  # folder of this machine's files
ENVIRONMENTS = {"dataset=cartpole", "dataset=acrobot"}
WIDTH = 110  # characters in a line of the output
BAD_INPUT, INTERRUPTED = 2, 130  # exit codes
LAUNCHERS = ("auto", "local", "joblib", "stacked", "slurm")
LOGGERS = ("auto", *LOGGER_MODES)


def main() -> None:
    """Run the command line. The exit code is 2 for bad input, 1 if runs failed or are not finished.

    For all figures it is 1 if one of them was not made, whatever the reason.
    """
    parser = argparse.ArgumentParser(description="Train the missing runs of a figure, then write its files.")
    parser.add_argument("figure", help=f"fig3, study1, ..., or {ALL}")
    parser.add_argument("--scale", default="quick", help=", ".join(declaration.SCALES))
    parser.add_argument(
        "--launcher",
        default="auto",
        help="auto: stacked for MLPs but at paper scale, else local (GPU) or joblib (CPU); " + "; ".join(LAUNCHERS[1:]),
    )
    parser.add_argument("--logger", default="auto", help="auto, offline, online, disabled")
    parser.add_argument("--results", default="results", help="folder for tables, pictures and verdicts")
    parser.add_argument("--update", action="store_true", help="replace the figure's files in that folder")
    parser.add_argument("--panels", default="", help="make only these anew: names, separated by commas")
    arguments = parser.parse_args()
    anew = tuple(arguments.panels.split(",")) if arguments.panels else ()
    try:
        if arguments.launcher not in LAUNCHERS:
            raise ConfigError(f"LAUNCHER={arguments.launcher}: must be one of {', '.join(LAUNCHERS)}")
        if arguments.logger not in LOGGERS:
            raise ConfigError(f"LOGGER={arguments.logger}: must be one of {', '.join(LOGGERS)}")
        how = (arguments.scale, arguments.launcher, arguments.logger, Path(arguments.results), arguments.update)
        if arguments.figure == ALL and anew:
            raise ConfigError(f"PANELS={arguments.panels}: needs the name of a figure, not {ALL}")
        if arguments.figure == ALL:
            sys.exit(1 if reproduce_all(*how) else 0)
        reproduce(arguments.figure, *how, anew)
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(1 if isinstance(error, RunFailed) else BAD_INPUT)


def reproduce(
    figure: str,
    scale: str,
    launcher: str,
    logger: str,
    results: Path,
    update: bool = False,
    anew: Sequence[str] = (),
) -> tables.FigureFiles:
    """Train the missing runs of a figure, then write its files, print its verdicts and return the paths of the files.

    Args:
        figure: name of the figure, such as ``fig3``.
        scale: one of ``declaration.SCALES``.
        launcher: one of ``LAUNCHERS``, see ``launcher_of``.
        logger: value of the config's ``logger``.
        results: folder of the figure's files and, in ``runs``, of the runs.
        update: whether the figure's files in ``results`` are replaced. If not, and if they exist, the new ones are
            written to the folder ``local`` in ``results`` and compared with them.
        anew: the panels to make anew, next to the others as they are in the figure's files; all panels if empty.

    Raises:
        WdlabError: if an argument is invalid.
        RunFailed: if runs failed, or are being trained by another process.
    """
    declared, earlier = declaration.read(figure, scale), tables.FigureFiles.of(figure, scale, results)
    kept = panels.keep(declared, anew, earlier) if anew else None
    trained = kept.anew if kept else declared
    title = f"{figure} at {scale} scale" + f", {', '.join(anew)}" * bool(anew)
    runs = declaration.figure_runs(trained, results / "runs")
    distinct, missing = missing_of(runs)
    text = f"{distinct} runs, {len(missing)} to do" if runs else f"simulated, no runs; {declared['at']['time']}"
    print(f"{title}: {text}", flush=True)
    if kept:
        print(f"The rows of {', '.join(kept.names)} are those of {earlier.table}, perhaps of earlier code.", flush=True)
    while missing:
        run_missing(missing, launcher, scale, logger, results)
        runs = declaration.figure_runs(trained, results / "runs")  # with those that the trials of a search decide
        distinct, missing = missing_of(runs)
        if missing:
            print(f"{title}, the chosen settings: {distinct} runs, {len(missing)} to do", flush=True)
    aside = not update and earlier.table.exists() and earlier.verdicts.exists()
    files, judged = figures.write(declared, runs, results / LOCAL if aside else results, kept)
    print_verdicts(files, judged)
    if aside:
        print_comparison(files, earlier, results)
    return files


def missing_of(runs: list[declaration.FigureRun]) -> tuple[int, list[declaration.FigureRun]]:
    """Return the number of different runs, since panels may share a run, and those that are not finished."""
    distinct = {run.directory.name: run for run in runs}.values()
    return len(distinct), [run for run in distinct if not run.directory.finished]


def reproduce_all(scale: str, launcher: str, logger: str, results: Path, update: bool = False) -> list[str]:
    """Make all figures at a scale, one after another, and print a line about each at the end.

    A figure that cannot be made does not stop the others. The arguments are those of :func:`reproduce`.

    Returns:
        The names of the figures that were not made.

    Raises:
        WdlabError: if a figure has no such scale, before anything is trained.
        SystemExit: if training was interrupted (130).
    """
    for name in declaration.names():
        declaration.read(name, scale)
    made, not_made = {}, {}
    for name in declaration.names():
        try:
            made[name] = figures.verdict_counts(reproduce(name, scale, launcher, logger, results, update))
        except SystemExit as error:
            if error.code == INTERRUPTED:
                raise
            not_made[name] = "bad input, see the line above"
        except Exception as error:
            line = explain(error)
            if line is None:  # a bug
                traceback.print_exception(error)
            not_made[name] = line or repr(error)
        if name in not_made:
            print(f"error: {name}: {not_made[name]}", file=sys.stderr)
    print(f"\n{scale} scale, {len(made)} of {len(made) + len(not_made)} figures made:")
    for name in declaration.names():
        print(f"{name:<6} {made[name] if name in made else f'NOT MADE: {not_made[name]}'}")
    return list(not_made)


def launcher_of(run: declaration.FigureRun, chosen: str, scale: str) -> str:
    """Return the Hydra launcher for a run: ``chosen``, or one that fits the run and the machine if that is ``auto``.

    This is ``stacked`` for MLPs on data sets at quick and cpu scale, else ``local`` with a GPU or a single core, else
    ``joblib``.
    """
    if chosen != "auto":
        return chosen
    is_mlp = any(override.startswith("model=mlp") for override in run.overrides)
    if scale != "paper" and is_mlp and not ENVIRONMENTS & {*run.overrides}:
        return "stacked"
    return "local" if shutil.which("nvidia-smi") or (os.cpu_count() or 1) == 1 else "joblib"


def run_missing(missing: list[declaration.FigureRun], chosen: str, scale: str, logger: str, results: Path) -> None:
    """Train the missing runs, those of one launcher after those of another.

    Stacks come last: a launcher checks all its runs first, and only others need packages that may be missing.

    Raises:
        RunFailed: if runs are not finished afterwards.
        SystemExit: if the training command found bad input (exit code 2) or was interrupted (130).
    """
    by_launcher: dict[str, list[declaration.FigureRun]] = {}
    for run in missing:
        by_launcher.setdefault(launcher_of(run, chosen, scale), []).append(run)
    for launcher, runs in sorted(by_launcher.items(), key=lambda of_launcher: of_launcher[0] == "stacked"):
        code = run_with(launcher, runs, logger, results)
        left = [run.directory for run in runs if not run.directory.finished]
        if left and code in (BAD_INPUT, INTERRUPTED):
            sys.exit(code)  # the command has printed the reason
        if left:
            raise RunFailed(f"{len(left)} runs are not finished ({left[0].name}: {left[0].status}); no figure was made")


def run_with(launcher: str, runs: list[declaration.FigureRun], logger: str, results: Path) -> int:
    """Train runs by ``python -m wdlab.train -m`` in a subprocess, and return the exit code of the command."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "jobs.json"
        listed.write_text(json.dumps([list(run.overrides) for run in runs]))
        command = [sys.executable, "-m", "wdlab.train", "-m", f"hydra.sweeper.jobs={listed}"]
        options = [f"hydra/launcher={launcher}", f"logger={logger}", f"paths.runs={results / 'runs'}"]
        return run_to_its_end([*command, *options])


def run_to_its_end(command: list[str]) -> int:
    """Run a command and return its exit code. Ctrl-C and SIGTERM let the command write its checkpoints."""
    process = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends Ctrl-C to the process itself
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def print_verdicts(files: tables.FigureFiles, judged: dict) -> None:
    """Print the paths of a figure's files, and from ``judged`` its scale-downs, seeds and verdicts."""
    print(f"\ntable    {files.table}\npicture  {files.picture}\nverdicts {files.verdicts}\n")
    print(f"{judged['title']}, {judged['scale']} scale")
    print(textwrap.fill(f"Scale-downs: {judged['scale_down']}", WIDTH))
    print(textwrap.fill(f"Tried before these runs: {judged['tried']}", WIDTH))
    seeds = {panel["title"]: panel.get("seeds", ()) for panel in judged["panels"].values()}
    for title, claims in figures.claims_by_panel(judged):
        print(f"\n{title}" + f", seeds {', '.join(map(str, seeds[title]))}" * bool(seeds[title]))
        for claim in claims:
            begin = f"  {claim['verdict'].upper():<16}"
            text = claim["sentence"]
            print(textwrap.fill(text, WIDTH, initial_indent=begin, subsequent_indent=" " * len(begin)))
    if any(claim["exploratory"] for claim in judged["claims"]):
        print("\nExploratory: of fewer than 5 seeds, or changed after its runs had been seen.")


def print_comparison(files: tables.FigureFiles, earlier: tables.FigureFiles, results: Path) -> None:
    """Print whether the files just written agree with earlier ones in ``results``, which are left alone."""
    found = comparison.compare(files, earlier)
    if found.agree:
        text = f"Agrees with the figure's files in {results}/, which stay as they are: {found.text}."
    else:
        text = f"Differs from the figure's files in {results}/, which UPDATE=1 replaces by these: {found.text}."
    print("\n" + textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False))


if __name__ == "__main__":
    process.raise_on_interrupt()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
