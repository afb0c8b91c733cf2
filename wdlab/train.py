"""The one entrypoint: config -> run -> fit -> records.

    python -m wdlab.train dataset=digits model=mlp regularizer=pathprox regularizer.strength=1e-3
    python -m wdlab.train -m dataset=digits model=mlp regularizer=l2,pathprox seed=0,1,2

The same command again skips what is done, resumes what was interrupted and retries what failed.
"""

import contextlib
import functools
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import hydra
import torch
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf

from wdlab import checkpoint, data, device, interpolations, loop, metrics, parallel, recorder, runs, stopping, sweep
from wdlab.errors import CheckpointError, ConfigError, RunFailed, WdlabError, explain
from wdlab.models.wrappers import unwrapped
from wdlab.progress import clock
from wdlab.regularizers.description import describe_weight_decay

log = logging.getLogger("wdlab")


def check(config: DictConfig, here: bool = True) -> None:
    """Raise a WdlabError, in one line, for anything in the config that a run could not use. Trains nothing.

    ``here`` is whether the run will be on this machine, and so its devices matter.
    """
    seed = config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed}: must be a whole number between 0 and {2**32 - 1}")
    _check_keys(config)
    if not isinstance(config.get("fail_fast"), bool):
        raise ConfigError(f"fail_fast={config.get('fail_fast')}: must be true or false")
    data.check_description(config["dataset"])
    _check_numbers(config, "optimizer")
    _check_numbers(config, "lr_schedule")
    loop.check(config["train"])
    device.check(config["runtime"], here)
    recorder.check(config["logger"])
    ranks = parallel.group().size
    _try_forward(config, ranks)
    data.check(config["dataset"], config["paths"]["data"], config["train"]["batch_size"], ranks)
    check_data_is_the_same(config, runs.RunDirectory.of(config))


def fault_of_code(config: DictConfig, here: bool = True) -> BaseException | None:
    """What the network's or the method's own code raises while a config is checked, a call of sys.exit too.

    That is no mistake in the config, so it is recorded with the run and stops no other; such a mistake is raised.

    Raises:
        WdlabError: as ``check`` does.
    """
    try:
        check(config, here)
    except (Exception, SystemExit) as error:
        if explain(error) is not None:
            raise
        return error
    return None


def _check_keys(config: DictConfig) -> None:
    """Refuse keys that nothing reads, which only ``+key=value`` can add."""
    known = {
        "": (*runs.SCIENTIFIC_KEYS, "fail_fast", "paths", "runtime", "logger", "hydra"),
        "train": loop.KEYS,
        "runtime": device.KEYS,
        "logger": recorder.KEYS,
        "paths": ("data", "runs"),
    }
    for section, allowed in known.items():
        for key in config[section] if section else config:
            if key not in allowed:
                raise ConfigError(f"{section}{'.' * bool(section)}{key}: unknown key; allowed: {', '.join(allowed)}")


def _check_numbers(config: DictConfig, section: str) -> None:
    """Refuse words where torch or a schedule expects numbers; the learning rate must be there, and >= 0."""
    if section == "optimizer" and "lr" not in config[section]:
        raise ConfigError("optimizer.lr: is missing")
    for key, value in OmegaConf.to_container(config[section], resolve=True).items():
        values = value if isinstance(value, list) else [value]
        if key not in ("name", "_target_") and any(isinstance(v, str | dict) for v in values):
            raise ConfigError(f"{section}.{key}={value}: must be a number")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if section == "lr_schedule" and is_number and not value >= 0:
            raise ConfigError(f"{section}.{key}={value}: must be a number >= 0")
        if key == "lr" and not (is_number and 0 <= value < float("inf")):
            raise ConfigError(f"{section}.lr={value}: must be a finite number >= 0")


def _try_forward(config: DictConfig, ranks: int) -> None:
    """Raise a ConfigError if a batch is too small for the network, and whatever its forward raises by itself."""
    sizes = {"batch_size": config["train"]["batch_size"] // ranks}
    if config["train"]["sharpness_every"] is not None:
        sizes["sharpness_examples"] = config["train"]["sharpness_examples"] or metrics.SHARPNESS_EXAMPLES
    model = build(config)[0]
    for key, size in sizes.items():
        try:
            try:
                _forward_without_values(model, config, size)
            except Exception as error:  # it reads a value, say, or keeps a tensor that is no buffer
                if _wants_more_examples(error):
                    raise
                loaded = data.load(config["dataset"], config["paths"]["data"], torch.device("cpu"))
                build(config)[0](loaded.train.examples(slice(0, min(size, 2)))[0])
        except ValueError as error:
            if _wants_more_examples(error):
                raise ConfigError(f"train.{key}={config['train'][key]}: is too small, {error}") from error
            raise


def _forward_without_values(model: torch.nn.Module, config: DictConfig, size: int) -> None:
    """Put a batch through the network that has shapes alone, so that nothing is computed."""
    held = (*model.named_parameters(), *model.named_buffers())
    shadow = {name: torch.empty_like(tensor, device="meta") for name, tensor in held}
    kind = torch.int64 if len(config["dataset"]["shape"]) == 1 else torch.float32
    batch = torch.empty(max(1, size), *config["dataset"]["shape"], dtype=kind, device="meta")
    torch.func.functional_call(model, shadow, (batch,))


def _wants_more_examples(error: Exception) -> bool:
    """Whether this is what batch norm raises for a single value per channel."""
    return isinstance(error, ValueError) and str(error).startswith("Expected more than 1 value per channel")


def check_data_is_the_same(
    config: DictConfig, directory: runs.RunDirectory, state: Mapping[str, Any] | None = None
) -> None:
    """Refuse to go on with a run, or to measure it, on other data than it was begun on.

    Args:
        config: whose ``dataset`` and ``paths.data`` it would go on with.
        directory: of the run.
        state: its checkpoint, if that has been read.

    Raises:
        CheckpointError: if it has a checkpoint, and the data is not that of its records.
    """
    if not (state or directory.checkpoint.exists() or directory.previous_checkpoint.exists()):
        return
    then = (state or {}).get("data_checksum") or directory.read("provenance.json").get("data_checksum")
    now = data.checksum(config["dataset"], config["paths"]["data"])
    if then not in (None, now):
        raise CheckpointError(
            f"{directory.path}: was begun on other data than paths.data={config['paths']['data']} holds now "
            f"(dataset={config['dataset']['name']}, sha256 {str(then)[:12]} then, {now[:12]} now); give it that data "
            "again, or delete the run to begin anew"
        )


def build(config: DictConfig) -> tuple[Any, Any, Any, Any]:
    """Model, optimizer, regularizer and learning-rate schedule of a config, on the CPU.

    The initial weights depend on ``seed`` only. ``model.to(device)`` moves what all of them hold.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    torch.manual_seed(config["seed"])
    shape, classes = tuple(config["dataset"]["shape"]), config["dataset"]["classes"]
    model = unwrapped(_instantiate(config, "model", input_shape=shape, classes=classes))
    optimizer = _instantiate(config, "optimizer", params=list(model.parameters()))
    regularizer = _instantiate(config, "regularizer", model=model)
    with _as_config_error("regularizer"):
        regularizer.set_steps_per_epoch(1)  # the loop knows how many there are
        regularizer.attach(optimizer).remove()
    lr_factor = _instantiate(config, "lr_schedule")
    with _as_config_error("lr_schedule"):
        lr_factor(0, config["train"]["steps"], 1)
    return model, optimizer, regularizer, lr_factor


def _instantiate(config: DictConfig, key: str, **arguments: Any) -> Any:
    with _as_config_error(key):
        return make(OmegaConf.to_container(config[key], resolve=True), **arguments)


def make(node: dict[str, Any], **arguments: Any) -> Any:
    """What a config node describes by its ``_target_``; what is null in it is left to its default.

    Raises:
        ValueError: if ``_target_`` is no name.
    """
    target = node.get("_target_")
    if not isinstance(target, str):
        raise ValueError(f"_target_={target}: must be the name of a class or a function")
    if node.get("_partial_"):  # Hydra's own wrapper checks its policy in every call, 60 microseconds each
        options = {key: value for key, value in _arguments(node).items() if key not in ("_target_", "_partial_")}
        return functools.partial(get_method(target), **options, **arguments)
    return instantiate(_arguments(node), _convert_="all", **arguments)


def _arguments(node: dict[str, Any]) -> dict[str, Any]:
    """Without names and nulls, in nodes within the node too."""
    kept = {key: value for key, value in node.items() if key != "name" and value is not None}
    return {key: _arguments(value) if isinstance(value, dict) else value for key, value in kept.items()}


@contextlib.contextmanager
def _as_config_error(key: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        from_hydra = isinstance(error, hydra.errors.InstantiationException)
        cause = error.__cause__ if from_hydra and isinstance(error.__cause__, ValueError | TypeError) else error
        if not from_hydra and not isinstance(cause, ValueError | TypeError):
            raise
        line = str(cause).strip().splitlines()[0]
        if from_hydra and cause is error and line.startswith("Error in call to") and error.__cause__ is not None:
            line = "".join(traceback.format_exception_only(error.__cause__)).splitlines()[0]
        lacking = re.search(r"missing \d+ required (?:positional|keyword-only) arguments?: '(\w+)'", line)
        if lacking:
            line = f"{lacking[1]}=None: must be given"
        inner = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)  # Hydra's word for a node within the node
        key = f"{key}.{inner[1]}" if inner else key
        joined = "." if line.split("=")[0].isidentifier() and "=" in line else ": "
        raise ConfigError(f"{key}{joined}{line}") from error


def run(config: DictConfig) -> str:
    """Do one run, or what is left of it.

    Returns:
        ``done``, or ``locked`` if another process has the run.

    Raises:
        WdlabError: before training, for input that cannot be used (CheckpointError for a damaged checkpoint).
        RunFailed: if the run diverged, or an error ended it; the traceback is in its ``status.json``.
        KeyboardInterrupt: if SIGINT or SIGTERM ended it; a checkpoint was written first.
    """
    directory = runs.RunDirectory.of(config)
    if directory.finished:
        log.info("%s: finished before, nothing to do", directory.name)
        return outcome_of(directory)
    device.check(config["runtime"])
    if not parallel.join(device.chosen(config["runtime"])).leads:
        return _follow(config, directory)
    fault = fault_of_code(config)
    try:
        directory.create()
        lock = directory.lock().acquire()
    except runs.filelock.Timeout:
        parallel.agree(go=False)
        log.info("%s: another process has this run; left alone", directory.name)
        return "locked"
    except OSError as error:
        raise ConfigError(f"paths.runs={config['paths']['runs']}: cannot be written, {error}") from error
    with lock:
        if directory.finished:  # by another process, since we looked
            parallel.agree(go=False)
            return outcome_of(directory)
        with failure_recorded(directory):
            if fault is not None:
                raise fault
            directory.remove_leftovers()
            directory.write_config(config)
            with stopping.exit_requests(stopping.Notice.of_this_job()) as stop_requested:
                _train(config, directory, stop_requested)
    return outcome_of(directory)


@contextlib.contextmanager
def failure_recorded(directory: runs.RunDirectory) -> Iterator[None]:
    """Put the error that ends a run into its ``status.json``; what is not told in one line is raised as a RunFailed."""
    try:
        yield
    except (Exception, SystemExit) as error:
        told = explain(error) or _told(error)
        with contextlib.suppress(OSError):
            directory.write_status("failed", error=told, traceback=traceback.format_exc())
        if isinstance(error, WdlabError):
            raise
        raise RunFailed(f"{directory.name}: failed, {told}") from error


def _told(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r}) was called"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return "".join(traceback.format_exception_only(error)).strip()


def _train(config: DictConfig, directory: runs.RunDirectory, stop_requested: Callable[[], bool]) -> None:
    session = Session(config, directory)
    try:
        parallel.agree(go=True)
        trained = experiment(config, threads=session.threads_before)
        session.open(trained)
        outcome = loop.fit(
            trained,
            config["train"],
            directory,
            session.records,
            session.start,
            config["runtime"]["checkpoint_seconds"],
            stop_requested,
        )
        session.end(outcome)
    finally:
        session.close()
    if outcome == "interrupted" or stop_requested():  # whenever it came: a sweep must not go on to the next run
        raise KeyboardInterrupt
    session.tell()


class Session:
    """What a process writes of a run beside its checkpoints: records, their mirror, provenance, status.

    Args:
        config, directory: of the run, which this process has the lock of.

    Attributes:
        start: the checkpoint it goes on from, None at the beginning.
        records: once it is open.

    Raises:
        CheckpointError: for a checkpoint that cannot be used, or of a run that was begun on other data.
    """

    def __init__(self, config: DictConfig, directory: runs.RunDirectory) -> None:
        self._config, self.directory = config, directory
        self._started = time.monotonic()
        self._mirror: recorder.Mirror | None = None
        self._said = ""
        self.records: recorder.Recorder | None = None
        self.start = checkpoint.load(directory)
        check_data_is_the_same(config, directory, self.start)

    @property
    def threads_before(self) -> int | None:
        """The number of threads that a run is resumed with, so that its numbers stay the same; None at the start."""
        sessions = self.directory.read("provenance.json").get("sessions", []) if self.start else []
        return sessions[-1].get("threads") if sessions else None

    def open(self, trained: loop.Experiment) -> None:
        """Begin to record."""
        directory, start = self.directory, self.start
        settings = runs.scientific_config(self._config)
        self._mirror = recorder.make_mirror(self._config["logger"], directory.path, directory.name, settings)
        self.records = recorder.Recorder(directory.metrics, start["records_bytes"] if start else 0, self._mirror)
        same_machine = directory.write_provenance(trained.data.checksum, **trained.machine.provenance)
        if start and not same_machine:
            log.warning("%s: resumed on another machine or setting; equal up to rounding only", directory.name)
        directory.write_status("running", step=start["step"] if start else 0)
        log.info("%s: %s", directory.name, f"going on at step {start['step']}" if start else "started")
        if log.isEnabledFor(logging.INFO):
            self._tell_decay(trained)

    def _tell_decay(self, trained: loop.Experiment) -> None:
        """Say what is decayed: tensor by tensor with ``hydra.verbose=wdlab``, else in a line, but not for every job."""
        optimizer = trained.optimizer
        own = (
            optimizer.describe() if hasattr(optimizer, "describe") else describe_weight_decay(optimizer, trained.model)
        )
        found = [text for text in (trained.regularizer.describe(), own) if "\n" in text]  # with tensors
        for text in found or ["nothing is decayed"]:
            if log.isEnabledFor(logging.DEBUG):
                log.debug("%s: %s", self.directory.name, text)
            elif not (trained.machine.stacked or _is_a_job()):
                log.info("%s: %s", self.directory.name, text.splitlines()[0])

    def end(self, outcome: str) -> None:
        """Write down how it went, as ``loop.fit`` says it."""
        seconds, last = time.monotonic() - self._started, self.records.last
        if outcome in runs.FINISHED:
            self.directory.write("summary.json", last | {"seconds_of_last_session": round(seconds, 3)})
        self.directory.write_status(outcome, step=last["step"])
        self._said = f"{outcome} after {clock(seconds)}{_result(last)}"

    def tell(self) -> None:
        """Say how it went."""
        log.info("%s: %s", self.directory.name, self._said)

    def close(self) -> None:
        """Close what is open, however it went."""
        if self.records is not None:
            self.records.close()
        if self._mirror is not None:
            self._mirror.finish(0 if self.directory.finished else 1)


def experiment(
    config: DictConfig, beside: loop.Experiment | None = None, stacked: int = 0, threads: int | None = None
) -> loop.Experiment:
    """Build everything a config trains with, on the machine that it trains on.

    Args:
        config: of the run.
        beside: another experiment in this process, of the same data set and runtime, to share both with.
        stacked: how many runs are trained side by side; 0 for one that is trained alone.
        threads: of the run's earlier session, see :func:`wdlab.device.set_up`.
    """
    model, optimizer, regularizer, lr_factor = build(config)
    if beside is None:
        machine = device.set_up(
            config["runtime"], model, bool(stacked), examples_of_batch(config) * max(1, stacked), threads
        )
        loaded = data.load(config["dataset"], config["paths"]["data"], machine.device)
    else:
        machine, loaded = beside.machine, beside.data
    machine.place(model)
    return loop.Experiment(model, loaded, optimizer, regularizer, lr_factor, machine, config["seed"])


def examples_of_batch(config: DictConfig) -> int:
    """Return how many predictions a batch asks for: one per image, or one per character of its texts."""
    shape = config["dataset"]["shape"]
    return config["train"]["batch_size"] * (shape[0] if len(shape) == 1 else 1)


def _follow(config: DictConfig, directory: runs.RunDirectory) -> str:
    """The part of a process that does not lead: the same steps on its share of the batches, nothing written."""
    if not parallel.agree():
        return directory.status
    start = checkpoint.load(directory)
    with stopping.exit_requests() as stop_requested:
        outcome = loop.fit(experiment(config), config["train"], directory, None, start, float("inf"), stop_requested)
    if outcome == "interrupted":
        raise KeyboardInterrupt
    return outcome


def _result(row: dict[str, Any]) -> str:
    shown = {key: row[key] for key in ("train/loss", "test/accuracy") if row.get(key) is not None}
    return "".join(f", {key.replace('/', ' ')} {value:.4g}" for key, value in shown.items())


def outcome_of(directory: runs.RunDirectory) -> str:
    if directory.status == "diverged":
        step = directory.read("status.json")["step"]
        raise RunFailed(f"{directory.name}: diverged, the loss was not finite at step {step}")
    return directory.status


@hydra.main(version_base="1.3", config_path=str(runs.CONFIGS), config_name="train")
def _hydra_main(config: DictConfig) -> str:
    """One run, alone or as a job of a sweep; Hydra and its callbacks take what it raises for a failure.

    A job of a sweep also returns ``skipped`` if the sweep has stopped before, ``interrupted`` if it stops meanwhile.
    """
    _settle(config)
    in_sweep = _is_a_job()
    notice = stopping.Notice.of_this_job() if in_sweep else None
    if notice is not None and notice.given:
        return "skipped"
    if in_sweep and sys.stderr.isatty():
        log.setLevel(logging.WARNING)  # the sweep's own bar tells
    if not parallel.group().leads:
        log.setLevel(logging.ERROR)
    try:
        outcome = run(config)
        if not in_sweep:
            log.info("records: %s", runs.RunDirectory.of(config).path)
        return outcome
    except KeyboardInterrupt:
        if stopping.is_orphan():  # nobody would tell it to go
            os._exit(130)
        if stopping.is_worker() or (notice is not None and notice.interrupted):
            return "interrupted"  # an exception would make the launcher end the others in the middle of a step
        raise
    except Exception as error:
        if not in_sweep:
            raise
        line = explain(error)
        log.error("error: %s", line or _told(error), exc_info=line is None)
        if notice is not None and config["fail_fast"]:
            notice.tell_failed()
        raise RunFailed(line or _told(error)) from error  # which can be sent between processes


def _is_a_job() -> bool:
    """Whether this is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _settle(config: DictConfig) -> None:
    """Read what comes from the environment, and take paths from where the command was started, in place.

    With ``hydra.job.chdir=true`` the current folder is another one, where a sweep would not find what it has checked.
    """
    interpolations.read_environment(config)
    started_in = Path(HydraConfig.get().runtime.cwd)
    if Path.cwd() != started_in and isinstance(config["paths"], DictConfig):
        for key, path in config["paths"].items():
            if isinstance(path, str) and path:
                config["paths"][key] = str(started_in / path)


class Ending(Callback):
    """Hands the error of a single run over to ``main``, after all other callbacks: Hydra would add lines to it."""

    def on_run_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Called by Hydra."""
        if job_return.status == JobStatus.FAILED:
            _errors.append(job_return._return_value)
            job_return.status = JobStatus.COMPLETED


_errors: list[Exception] = []


def _check_command_line(arguments: list[str]) -> list[str]:
    """The arguments as Hydra should get them.

    Raises:
        ConfigError: for what Hydra answers with its usage, or takes in silence.
    """

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}")

    parser = get_args_parser()
    parser.error = refuse
    parsed = parser.parse_args(arguments)
    if parsed.experimental_rerun is not None:
        refuse("--experimental-rerun is not for runs that go on by themselves")
    groups = {str(path.parent.relative_to(runs.CONFIGS)) for path in runs.CONFIGS.glob("*/**/*.yaml")}
    chosen: dict[str, str] = {}
    for override in parsed.overrides:
        group, _, name = override.partition("=")
        if group in groups and chosen.setdefault(group, name) != name:
            raise ConfigError(f"{group}={name}: {group}={chosen[group]} is given too; give one of them")
    if not (parsed.multirun or "hydra.mode=MULTIRUN" in parsed.overrides):
        return arguments
    later = {override: sweep.left_to_the_jobs(override, groups) for override in parsed.overrides}
    return [later.get(argument, argument) for argument in arguments]


def main() -> None:
    """The command line. Exit code 0: all done; 1: a run failed or diverged; 2: bad input; 130: interrupted."""
    debugging = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through to here
    sweep.register()
    try:
        with stopping.as_interrupt():
            _errors.clear()
            sys.argv[1:] = _check_command_line(sys.argv[1:])
            _hydra_main()
            if _errors:  # of a single run; a sweep raises its own
                raise _errors[0]
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = explain(error)
        if debugging or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(1 if isinstance(error, RunFailed) else 2)
    finally:
        parallel.leave()


if __name__ == "__main__":
    from wdlab import train  # under its own name, so that launchers can find it in other processes

    train.main()
