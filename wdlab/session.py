"""One session of a run: lock its directory, resume, train, record the outcome. Used by ``train`` and by ``sweeps``."""

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import filelock
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from wdlab import loop, process
from wdlab.build import Parts, build_experiment, build_parts
from wdlab.control import ControlRun
from wdlab.data import Environment
from wdlab.engine import device, parallel, stopping
from wdlab.engine.experiment import Experiment
from wdlab.engine.one_run import OneRun
from wdlab.engine.progress import format_duration
from wdlab.errors import ConfigError, RunFailed, WdlabError, describe_error, explain
from wdlab.records import checkpoint, recorder, wandb_mirror
from wdlab.records.directory import FINISHED, RunDirectory
from wdlab.records.identity import scientific_config
from wdlab.regularizers.description import describe_weight_decay
from wdlab.settings import read, read_runtime
from wdlab.validation import check_and_build, check_data_unchanged

log = logging.getLogger("wdlab")


def run(config: DictConfig) -> str:
    """Train the run of a config, or resume it; do nothing if it is finished.

    Args:
        config: the composed config of the run.

    Returns:
        ``done``, or ``locked`` if another process holds the run's lock. A process that does not lead (see
        :mod:`wdlab.engine.parallel`) returns what ``loop.fit`` returned there, or the recorded status of the run
        (``RunDirectory.status``) if the leader does not train.

    Raises:
        WdlabError: before training, for input that cannot be used (CheckpointError for a damaged checkpoint).
        RunFailed: if the run diverged (now or in an earlier session), or an error ended it. The traceback of the error
            is in the run's ``status.json``.
        KeyboardInterrupt: if a stop was requested (see ``stopping.watch_stop_requests``), after a checkpoint was
            written.
    """
    directory = RunDirectory.of(config)
    if directory.finished:
        log.info("%s: finished before, nothing to do", directory.name)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("\n".join(_decay_tables(build_parts(config))))
        return status_unless_diverged(directory)
    runtime = read_runtime(config)
    device.check_runtime(runtime)
    if not parallel.connect(device.chosen_device(runtime)).is_leader:
        return _follow(config, directory)
    built, fault = check_and_build(config, directory=directory)
    process.resume_collections()
    try:
        directory.create()
        lock = directory.lock().acquire()
    except filelock.Timeout:
        parallel.broadcast_decision(go=False)
        log.info("%s: another process has this run; left alone", directory.name)
        return "locked"
    except OSError as error:
        raise ConfigError(f"paths.runs={config['paths']['runs']}: cannot be written, {error}") from error
    with lock:
        if directory.finished:  # another process has finished it since the first check
            parallel.broadcast_decision(go=False)
            return status_unless_diverged(directory)
        with failure_recorded(directory):
            if fault is not None:
                raise fault
            directory.remove_leftovers()
            directory.write_config(config)
            with stopping.watch_stop_requests(stopping.StopFiles.of_this_job()) as stop_requested:
                _train(config, directory, stop_requested, built)
    return status_unless_diverged(directory)


@contextlib.contextmanager
def failure_recorded(directory: RunDirectory) -> Iterator[None]:
    """Context manager that writes an error raised inside it to the run's ``status.json`` and raises it again.

    KeyboardInterrupt is not recorded.

    Raises:
        WdlabError: the error itself, if it is one.
        RunFailed: in place of any other error, SystemExit included.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        line = explain(error) or describe_error(error)
        with contextlib.suppress(OSError):
            directory.write_status("failed", error=line, traceback=traceback.format_exc())
        if isinstance(error, WdlabError):
            raise
        raise RunFailed(f"{directory.name}: failed, {line}") from error


def _train(
    config: DictConfig, directory: RunDirectory, stop_requested: Callable[[], bool], built: Parts | None = None
) -> None:
    """Train a run whose lock this process holds, and record it.

    Args:
        config: the config of the run.
        directory: the directory of the run.
        stop_requested: see ``loop.fit``.
        built: the parts that the check of the config has built; None builds them here.

    Raises:
        KeyboardInterrupt: if a stop was requested, also after the last update: a sweep must not begin the next run.
    """
    session = Session(config, directory)
    try:
        parallel.broadcast_decision(go=True)
        trained = build_experiment(config, threads=session.threads_before, built=built)
        session.open(trained)
        settings = read(config)
        kind = ControlRun if isinstance(trained.data, Environment) else OneRun
        program = kind(trained, settings.train, directory, session.records, session.start)
        outcome = loop.fit(program, settings.train, settings.runtime.checkpoint_seconds, stop_requested)
        session.end(outcome)
    finally:
        session.close()
    if outcome == "interrupted" or stop_requested():
        raise KeyboardInterrupt
    session.log_outcome()


class Session:
    """The writer of everything about a run except its checkpoints: log lines, W&B mirror, provenance, status, summary.

    Args:
        config: the config of the run.
        directory: the directory of the run, whose lock this process holds.

    Attributes:
        directory: as given.
        start: the checkpoint that the run resumes from, None for a new run.
        records: the recorder of the log lines, None before ``open``.

    Raises:
        CheckpointError: if the checkpoint cannot be read, or the data set has changed since the run began.
    """

    def __init__(self, config: Mapping[str, Any], directory: RunDirectory) -> None:
        self._config, self.directory = config, directory
        self._started = time.monotonic()
        self._mirror: wandb_mirror.Mirror | None = None
        self._outcome = ""
        self.records: recorder.Recorder | None = None
        self.start = checkpoint.load(directory)
        check_data_unchanged(config, directory, self.start)

    @property
    def threads_before(self) -> int | None:
        """The number of CPU threads of the run's previous session, None for a new run.

        A resumed run uses the same number, since sums are rounded differently with another one.
        """
        sessions = self.directory.read("provenance.json").get("sessions", []) if self.start else []
        return sessions[-1].get("threads") if sessions else None

    def open(self, trained: Experiment) -> None:
        """Open the records and their mirror, record provenance and status, and log the start.

        Args:
            trained: the experiment that this session trains.

        Raises:
            CheckpointError: if log lines from before the checkpoint are missing or damaged.
        """
        directory, start = self.directory, self.start
        logger, science = read(self._config).logger, scientific_config(self._config)
        self._mirror = wandb_mirror.make_mirror(logger, directory.path, directory.name, science)
        self.records = recorder.Recorder(directory.metrics, start["records_bytes"] if start else 0, self._mirror)
        same_machine = directory.write_provenance(trained.data.checksum, **trained.provenance)
        if start and not same_machine:
            log.warning("%s: resumed on another machine or setting; equal up to rounding only", directory.name)
        directory.write_status("running", step=start["step"] if start else 0)
        begun = f"resumed at step {start['step']}" if start else "started"
        level = logging.DEBUG if trained.machine.stacked else logging.INFO  # a stack logs one line for all its runs
        log.log(level, "%s: %s%s", directory.name, begun, _job_of_sweep())
        if log.isEnabledFor(logging.INFO):
            self._log_decay(trained)

    def _log_decay(self, trained: Experiment) -> None:
        """Log which tensors are decayed: tables with ``hydra.verbose=wdlab``, otherwise the first line of each table.

        The first lines are not logged for stacked runs and for jobs of a sweep.
        """
        for text in _decay_tables(trained):
            if log.isEnabledFor(logging.DEBUG):
                log.debug("%s: %s", self.directory.name, text)
            elif not (trained.machine.stacked or is_sweep_job()):
                log.info("%s: %s", self.directory.name, text.splitlines()[0])

    def end(self, outcome: str) -> None:
        """Write the status, and the summary of a finished run.

        Args:
            outcome: the word that ``loop.fit`` returned; ``diverged`` for a run of a stack that has diverged.
        """
        seconds, last = time.monotonic() - self._started, self.records.last
        if outcome in FINISHED:
            self.directory.write("summary.json", last | {"seconds_of_last_session": round(seconds, 3)})
        self.directory.write_status(outcome, step=last["step"])
        self._outcome = f"{outcome} after {format_duration(seconds)}{_result(last)}"

    def log_outcome(self, level: int = logging.INFO) -> None:
        """Log the outcome, the duration of this session and the last training loss and test accuracy."""
        log.log(level, "%s: %s", self.directory.name, self._outcome)

    def close(self) -> None:
        """Close the records and finish their mirror: exit code 0 if the run is done or has diverged, else 1."""
        if self.records is not None:
            self.records.close()
        if self._mirror is not None:
            self._mirror.finish(0 if self.directory.finished else 1)


def _follow(config: DictConfig, directory: RunDirectory) -> str:
    """Train as a process that does not lead: the same updates on its share of each batch, without writing anything.

    Returns:
        The outcome that ``loop.fit`` returned, or the recorded status of the run if the leader does not train.

    Raises:
        KeyboardInterrupt: if a stop was requested.
    """
    if not parallel.broadcast_decision():
        return directory.status
    start = checkpoint.load(directory)
    with stopping.watch_stop_requests() as stop_requested:
        settings = read(config).train
        trained = build_experiment(config)
        process.resume_collections()
        program = OneRun(trained, settings, directory, None, start)
        outcome = loop.fit(program, settings, float("inf"), stop_requested)
    if outcome == "interrupted":
        raise KeyboardInterrupt
    return outcome


def _decay_tables(trained: Experiment | Parts) -> list[str]:
    """Return a table of the tensors that the method decays, and one of those that the optimizer does, if any."""
    optimizer, model = trained.optimizer, trained.model
    own = optimizer.describe() if hasattr(optimizer, "describe") else describe_weight_decay(optimizer, model)
    # a description of one line lists no tensors: nothing is decayed
    return [text for text in (trained.regularizer.describe(), own) if "\n" in text] or ["nothing is decayed"]


def _job_of_sweep() -> str:
    """Return number and settings of a job of a grid or a search, as text to append; "" for any other run."""
    if not is_sweep_job():
        return ""
    sweeper = HydraConfig.get().sweeper
    if sweeper.get("jobs") and not sweeper.get("trials"):
        return ""
    return f", job {HydraConfig.get().job.num + 1}: {' '.join(HydraConfig.get().overrides.task)}"


def _result(row: dict[str, Any]) -> str:
    """Return training loss and test accuracy of a log line as text, ``""`` if the line has neither."""
    shown = {key: row[key] for key in ("train/loss", "test/accuracy", "score/mean_return") if row.get(key) is not None}
    return "".join(f", {key.replace('/', ' ')} {value:.4g}" for key, value in shown.items())


def status_unless_diverged(directory: RunDirectory) -> str:
    """Return the recorded status of a run, ``done`` for a run that has ended well.

    Raises:
        RunFailed: if the run diverged.
    """
    if directory.status == "diverged":
        step = directory.read("status.json")["step"]
        raise RunFailed(f"{directory.name}: diverged, the loss was not finite at step {step}")
    return directory.status


def is_sweep_job() -> bool:
    """Return True if this process runs a job of a sweep (``-m``)."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
