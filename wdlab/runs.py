"""The list of the runs of a folder, read from their directories. ``make status`` prints it too.

    python -m wdlab.runs [FOLDER]                   every run with its state, step, age of its last log line, and the
                                                    settings in which the listed runs differ
    python -m wdlab.runs --status failed,stale      only the runs in these states
    python -m wdlab.runs --retry-failed             resume runs that failed, were interrupted, or lost their process
    python -m wdlab.runs --json                     a JSON list with one object per run

A run is ``done``, ``running`` (a process holds its lock), ``interrupted`` (stopped with a checkpoint), ``diverged``,
``failed``, ``stale`` (started and not finished, and no process holds its lock, as after a kill), ``unreadable`` (its
``status.json`` is damaged) or ``new`` (not started). On a filesystem that does not share locks between machines, a run
that another machine trains is listed as stale.

An object has the keys ``run`` (the name), ``path`` and ``state``; ``step``, the step of the last log line (0 if there
is none); ``steps``, the length of the run (null if its config cannot be read); ``age_seconds``, the age of the last log
line (null if there is none); ``host`` and ``pid`` of the process that wrote the status (null if not recorded);
``error``, the last line of the error message (null if there is none); ``settings``, the settings that decide the run's
numbers, as text by config path ({} if the config cannot be read).
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

from wdlab.errors import ConfigError, WdlabError, explain
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import CONFIGS, PROJECT, compose_config, run_name
from wdlab.records.listing import STATES, ListedRun, differing_settings, entries, entry_of

__all__ = ["CONFIGS", "PROJECT", "RunDirectory", "compose_config", "main", "retry", "run_name"]

RETRIED = ("interrupted", "failed", "stale")
# parts of an old config to which newer keys are added with their defaults
_COMPLETED = ("train", "paths", "runtime", "logger")
# units of an age: seconds, symbol
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def table_lines(listed: Sequence[ListedRun], columns: int | None) -> Iterator[str]:
    """Yield the lines of the printed list: for each run its state, the settings in which the runs differ, its error.

    Args:
        listed: the runs.
        columns: the width to which settings and errors are cut; None for no cut.
    """
    yield f"{'state':<12}{'step':>15}  {'last line':>11}  run"
    for entry, settings in zip(listed, differing_settings(listed), strict=True):
        steps = "?" if entry.steps is None else entry.steps
        yield f"{entry.state:<12}{f'{entry.step}/{steps}':>15}  {_age(entry.age_seconds):>11}  {_printable(entry.run)}"
        for detail in map(_printable, filter(None, (" ".join(settings), _detail(entry)))):
            is_cut = columns is not None and len(detail) + 4 > columns
            yield f"    {detail[: max(columns - 7, 0)]}..." if is_cut else f"    {detail}"


def _detail(entry: ListedRun) -> str:
    """Return the last line of an entry: the process of a running or stale run, or the error; "" without either."""
    if entry.state in ("running", "stale") and entry.pid is not None:
        return f"{'was ' * (entry.state == 'stale')}process {entry.pid} on {entry.host}"
    return entry.error or ""


def _age(seconds: float | None) -> str:
    """Return an age in one unit, such as ``3 min``; ``-`` for None."""
    if seconds is None:
        return "-"
    length, unit = next((u for u in _UNITS if seconds >= u[0]), _UNITS[-1])
    return f"{int(seconds // length)} {unit}"


def _printable(text: str) -> str:
    """Return the text with characters that could move a terminal's cursor, and bytes that are not text, escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def state_counts_line(every: Sequence[ListedRun]) -> str:
    """Return a line with the number of runs, and of the runs in each state."""
    by_state = Counter(entry.state for entry in every)
    listed = ", ".join(f"{by_state[state]} {state}" for state in STATES if by_state[state])
    return f"{len(every)} runs: {listed}" if every else "0 runs"


def retry(chosen: Sequence[ListedRun]) -> dict[str, str]:
    """Resume runs from their own ``config.yaml``, one after another.

    Returns:
        The error of each run that did not end well, by the name of the run. A run whose lock another process holds is
        skipped and has no error.

    Raises:
        KeyboardInterrupt: if SIGINT or SIGTERM stopped a run; its checkpoint has been written.
    """
    from wdlab import session  # imported here, since listing runs needs no torch

    configure_log(OmegaConf.load(CONFIGS / "hydra" / "job_logging" / "wdlab.yaml"))
    defaults, bad = compose_config([]), {}
    for entry in chosen:
        try:
            session.run(_config(_directory(entry), defaults))
        except (Exception, SystemExit) as error:  # the other runs may still succeed
            bad[entry.run] = explain(error) or repr(error)
            print(f"error: {_printable(bad[entry.run])}", flush=True)
    return bad


def _directory(entry: ListedRun) -> RunDirectory:
    """Return the run directory of an entry of the list."""
    return RunDirectory(Path(entry.path).parent, entry.run)


def _config(directory: RunDirectory, defaults: DictConfig) -> DictConfig:
    """Return the config with which a run resumes in its directory, from its ``config.yaml``.

    Keys of ``_COMPLETED`` that are not in the file get the values of ``defaults``, the config without overrides.

    Raises:
        ConfigError: if the config cannot be read, or is today the config of a run with another name.
    """
    config = OmegaConf.create(directory.read_config())
    for part in _COMPLETED:
        config[part] = OmegaConf.merge(defaults[part], config.get(part, {}))
    config["paths"]["runs"] = str(directory.path.parent)
    OmegaConf.set_struct(config, True)
    name = run_name(config)
    if name != directory.name:
        raise ConfigError(f"{directory.name}: left alone, today its config.yaml is that of {name}")
    return config


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, then exit: code 0; 1 if a retried run failed again; 2 for bad input; 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m wdlab.runs", description="List all runs, or retry those that failed."
    )
    usual = Path("results/runs")
    parser.add_argument("folder", nargs="?", type=Path, default=usual, help=f"folder of the run directories ({usual})")
    parser.add_argument("--json", action="store_true", help="print a list with one object per run")
    parser.add_argument("--status", metavar="STATE,...", help=f"only runs in these states: {', '.join(STATES)}")
    parser.add_argument("--retry-failed", action="store_true", help=f"resume the runs that are {', '.join(RETRIED)}")
    given = parser.parse_args(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        states = _states(given.status)
        code = 0
        if given.retry_failed:
            with contextlib.redirect_stdout(sys.stderr) if given.json else contextlib.nullcontext():
                code = _retry_and_sum_up([e for e in entries(given.folder) if e.state in states and e.state in RETRIED])
        if given.json or not given.retry_failed:
            _print(entries(given.folder), states, given.json)
        sys.stdout.flush()
    except WdlabError as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from here", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code)


def _states(given: str | None) -> tuple[str, ...]:
    """Return the states in the value of ``--status``, such as ``failed,stale``; all states for None.

    Raises:
        ConfigError: for a state that does not exist.
    """
    states = STATES if given is None else tuple(given.split(","))
    for state in states:
        if state not in STATES:
            raise ConfigError(f"--status {state}: must be one of {', '.join(STATES)}")
    return states


def _print(every: Sequence[ListedRun], states: Collection[str], as_json: bool) -> None:
    """Print the runs whose state is in ``states`` as JSON, or as the list, followed by the number of all runs."""
    listed = [entry for entry in every if entry.state in states]
    if as_json:
        print(json.dumps([asdict(entry) for entry in listed], indent=2))
        return
    for line in table_lines(listed, shutil.get_terminal_size().columns if sys.stdout.isatty() else None):
        print(line)
    print(state_counts_line(every))
    if any(entry.state in RETRIED for entry in listed):
        print(f"--retry-failed resumes those that are {', '.join(RETRIED)}")


def _retry_and_sum_up(chosen: Sequence[ListedRun]) -> int:
    """Retry runs and print how they ended. Return the exit code: 1 if a run did not end well again, else 0."""
    print(f"{state_counts_line(chosen)}; to be retried" if chosen else "nothing to retry", flush=True)
    bad = retry(chosen) if chosen else {}
    if chosen:
        print(f"retried {state_counts_line([entry_of(_directory(entry)) for entry in chosen])}")
    for name, reason in bad.items():
        print(f"  {_printable(name)}: {_printable(reason)}")
    return 1 if bad else 0


if __name__ == "__main__":
    main()
