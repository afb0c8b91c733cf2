"""The ledger of all runs, read off their directories; ``python -m wdlab.runs`` and ``make status`` print it.

    python -m wdlab.runs [FOLDER]                   every run with its state, step, and age of its last record
    python -m wdlab.runs --status failed,stale      only those
    python -m wdlab.runs --retry-failed             go on with what failed, was interrupted, or lost its process
    python -m wdlab.runs --json                     a list with one object per run

A run is ``done``, ``running`` (a process holds its lock), ``interrupted`` (stopped itself, with a checkpoint),
``diverged``, ``failed``, ``stale`` (it was begun, did not end, and no process has it, as after a kill), ``unreadable``
(its ``status.json`` is damaged) or ``new`` (nothing was begun). Locks are those of the filesystem; on one that does not
carry them from machine to machine, a run on another machine looks stale.

Keys of an object: ``run``, ``path``, ``state``; ``step``, that of the last record, of ``steps`` (null if unknown);
``age_seconds`` of the last record (null if there is none); ``host`` and ``pid`` of the process that wrote the status;
``error``, its last line (null if there is none).
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

from wdlab.errors import ConfigError, WdlabError, explain
from wdlab.records.directory import FINISHED, RunDirectory
from wdlab.records.identity import CONFIGS, compose_config, run_name

STATES = ("done", "new", "running", "interrupted", "diverged", "failed", "stale", "unreadable")  # in order of the list
RETRIED = ("interrupted", "failed", "stale")
_WRITTEN = ("running", "interrupted", "failed", *FINISHED)
_COMPLETED = ("train", "paths", "runtime", "logger")  # parts of an old config that may lack what has a default today
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True)
class Entry:
    """A run as it is now; the module says what the fields mean."""

    run: str
    path: str
    state: str
    step: int
    steps: int | None
    age_seconds: float | None
    host: str | None
    pid: int | None
    error: str | None


def entries(root: Path) -> list[Entry]:
    """All runs of a folder, in the order of ``STATES``, then by name.

    Raises:
        ConfigError: if it is no folder, or cannot be read.
    """
    try:
        with os.scandir(root) as found:
            names = [entry.name for entry in found if not entry.name.startswith(".") and entry.is_dir()]
    except OSError as error:
        raise ConfigError(f"{root}: is no folder of runs, {error.strerror}") from error
    return sorted((entry_of(RunDirectory(root, name)) for name in names), key=_in_order)


def entry_of(directory: RunDirectory) -> Entry:
    """One run, whatever is in its directory."""
    state, status, error = _state(directory)
    try:
        age = max(0.0, time.time() - directory.metrics.stat().st_mtime)
    except OSError:
        age = None
    host, pid = status.get("host"), status.get("pid")
    return Entry(
        run=directory.name,
        path=str(directory.path),
        state=state,
        step=directory.last_step,
        steps=_steps(directory),
        age_seconds=age,
        host=host if isinstance(host, str) else None,
        pid=pid if isinstance(pid, int) else None,
        error=error,
    )


def _in_order(entry: Entry) -> tuple[int, str]:
    return STATES.index(entry.state), entry.run


def _state(directory: RunDirectory) -> tuple[str, dict[str, Any], str | None]:
    """A run's state, what its ``status.json`` says, and the last line of what went wrong."""
    try:
        status, owned = directory.read("status.json"), directory.held
        while not owned and (again := directory.read("status.json")) != status:  # began or ended between the looks
            status, owned = again, directory.held
        there = bool(status) or (directory.path / "status.json").exists()
        begun = there or directory.config.exists()
    except OSError as error:
        return "unreadable", {}, f"status.json: {error.strerror}"
    written = status.get("status")
    if written == "done":
        return written, status, None
    if written == "diverged":
        return written, status, f"the loss was not finite at step {status.get('step')}"
    if owned:
        return "running", status if written == "running" else {}, None  # if not, it is that of the process before
    if there and written not in _WRITTEN:
        return "unreadable", status, "status.json: holds no status of a run"
    if written == "failed":
        return written, status, (str(status.get("error")).splitlines() or [""])[-1]
    if written == "interrupted":
        return written, status, None
    return "stale" if begun else "new", status, None


def _steps(directory: RunDirectory) -> int | None:
    try:
        steps = directory.read_config()["train"]["steps"]
    except (ConfigError, KeyError, TypeError):
        return None
    return steps if isinstance(steps, int) else None


def table(listed: Iterable[Entry], columns: int | None) -> Iterator[str]:
    """Lines to read. Names are whole; an error that is longer than ``columns`` ends in dots."""
    yield f"{'state':<12}{'step':>15}  {'last record':>11}  run"
    for entry in listed:
        steps = "?" if entry.steps is None else entry.steps
        yield f"{entry.state:<12}{f'{entry.step}/{steps}':>15}  {_age(entry.age_seconds):>11}  {_printable(entry.run)}"
        detail = _printable(_detail(entry))
        if columns is not None and len(detail) + 4 > columns:
            detail = detail[: max(columns - 7, 0)] + "..."
        if detail:
            yield f"    {detail}"


def _detail(entry: Entry) -> str:
    if entry.state in ("running", "stale") and entry.pid is not None:
        return f"{'was ' * (entry.state == 'stale')}process {entry.pid} on {entry.host}"
    return entry.error or ""


def _age(seconds: float | None) -> str:
    """As ``3 min``: one unit is enough."""
    if seconds is None:
        return "-"
    length, unit = next((u for u in _UNITS if seconds >= u[0]), _UNITS[-1])
    return f"{int(seconds // length)} {unit}"


def _printable(text: str) -> str:
    """Without what could move a cursor, or is no text."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def counts(every: Sequence[Entry]) -> str:
    """One line: how many are in which state."""
    of = Counter(entry.state for entry in every)
    told = ", ".join(f"{of[state]} {state}" for state in STATES if of[state])
    return f"{len(every)} runs: {told}" if every else "0 runs"


def retry(chosen: Sequence[Entry]) -> dict[str, str]:
    """Go on with runs from their own ``config.yaml``, one after another; torch is needed from here on.

    Returns:
        Why, for each run that did not end well. One that another process has taken is left to it.

    Raises:
        KeyboardInterrupt: if SIGINT or SIGTERM ended a run; a checkpoint was written first.
    """

    from wdlab import session  # torch is imported only here

    configure_log(OmegaConf.load(CONFIGS / "hydra" / "job_logging" / "wdlab.yaml"))
    defaults, bad = compose_config([]), {}
    for entry in chosen:
        try:
            session.run(_config(_directory(entry), defaults))
        except (Exception, SystemExit) as error:  # whatever it is, the others can still do well
            bad[entry.run] = explain(error) or repr(error)
            print(f"error: {_printable(bad[entry.run])}", flush=True)
    return bad


def _directory(entry: Entry) -> RunDirectory:
    return RunDirectory(Path(entry.path).parent, entry.run)


def _config(directory: RunDirectory, defaults: DictConfig) -> DictConfig:
    """What a run was started with, to be run where it lies.

    Raises:
        ConfigError: if that is unreadable, or would be another run today.
    """
    config = OmegaConf.create(directory.read_config())
    for part in _COMPLETED:
        config[part] = OmegaConf.merge(defaults[part], config.get(part, {}))
    config["paths"]["runs"] = str(directory.path.parent)
    OmegaConf.set_struct(config, True)
    name = run_name(config)
    if name != directory.name:
        raise ConfigError(f"{directory.name}: left alone, its config.yaml is that of {name} today")
    return config


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Exit code 0; 1 if a retried run did not end well; 2 for bad input; 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m wdlab.runs", description="The ledger of all runs.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("results/runs"), help="of the run directories")
    parser.add_argument("--json", action="store_true", help="print a list with one object per run")
    parser.add_argument("--status", metavar="STATE,...", help=f"only these: {', '.join(STATES)}")
    parser.add_argument("--retry-failed", action="store_true", help=f"go on with runs that are {', '.join(RETRIED)}")
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
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code)


def _states(given: str | None) -> tuple[str, ...]:
    states = STATES if given is None else tuple(given.split(","))
    for state in states:
        if state not in STATES:
            raise ConfigError(f"--status {state}: must be one of {', '.join(STATES)}")
    return states


def _print(every: Sequence[Entry], states: Collection[str], as_json: bool) -> None:
    listed = [entry for entry in every if entry.state in states]
    if as_json:
        print(json.dumps([asdict(entry) for entry in listed], indent=2))
        return
    for line in table(listed, shutil.get_terminal_size().columns if sys.stdout.isatty() else None):
        print(line)
    print(counts(every))
    if any(entry.state in RETRIED for entry in listed):
        print(f"--retry-failed goes on with those that are {', '.join(RETRIED)}")


def _retry_and_sum_up(chosen: Sequence[Entry]) -> int:
    print(f"{counts(chosen)}; to be retried", flush=True)
    bad = retry(chosen) if chosen else {}
    after = [entry_of(_directory(entry)) for entry in chosen]
    print(f"retried {counts(after)}")
    for name, reason in bad.items():
        print(f"  {_printable(name)}: {_printable(reason)}")
    return 1 if bad else 0


if __name__ == "__main__":
    main()
