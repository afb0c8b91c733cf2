"""The command line that trains: one run, or a sweep with ``-m``.

    python -m wdlab.train dataset=digits model=mlp regularizer=pathprox regularizer.strength=1e-3
    python -m wdlab.train -m dataset=digits model=mlp regularizer=l2,pathprox seed=0,1,2

The same command again skips finished runs, resumes interrupted runs and retries failed runs.
"""

import logging
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser  # Hydra has no public function that returns its parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from wdlab import interpolations, process
from wdlab.engine import parallel, stopping
from wdlab.errors import ConfigError, RunFailed, describe_error, explain
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import CONFIGS
from wdlab.session import is_sweep_job, log, run
from wdlab.sweeps.compose import as_sweep_override
from wdlab.sweeps.register import register

OF_SWEEPS = ("hydra/launcher=", "hydra.launcher.", "hydra.sweeper.")  # how settings that only sweeps use begin


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def _hydra_main(config: DictConfig) -> str:
    """Train one run, alone or as a job of a sweep.

    Args:
        config: the config of the run, composed by Hydra.

    Returns:
        The word that :func:`wdlab.session.run` returns. A job of a sweep also returns ``skipped`` if the sweep has
        stopped before the job, and ``interrupted`` if the sweep stops during it.

    Raises:
        Exception: the error that ended the run, which Hydra passes to its callbacks; in a sweep as a RunFailed.
        KeyboardInterrupt: if a stop was requested in another way than by the sweep.
    """
    _resolve_paths(config)
    in_sweep = is_sweep_job()
    stop_files = stopping.StopFiles.of_this_job() if in_sweep else None
    if stop_files is not None and stop_files.is_set:
        return "skipped"
    if in_sweep and sys.stderr.isatty():
        log.setLevel(logging.WARNING)  # the sweep shows a progress bar of its own
    if not parallel.process_group().is_leader:
        log.setLevel(logging.ERROR)
    try:
        outcome = run(config)
        if not in_sweep:
            log.info("records: %s", RunDirectory.of(config).path)
        return outcome
    except KeyboardInterrupt:
        if stopping.is_orphan():  # no other process would end this one: its sweep is dead
            os._exit(130)
        if stopping.is_worker() or (stop_files is not None and stop_files.interrupted):
            return "interrupted"  # an exception would make the launcher end the other jobs in the middle of a step
        raise
    except Exception as error:
        if not in_sweep:
            raise
        line = explain(error)
        log.error("error: %s", line or describe_error(error), exc_info=line is None)
        if stop_files is not None and config["fail_fast"]:
            stop_files.set_failed()
        # a worker pickles its error to send it, which is possible for a RunFailed but not for every error
        raise RunFailed(line or describe_error(error)) from error


def _resolve_paths(config: DictConfig) -> None:
    """Parse values from environment variables, and make ``paths`` absolute if Hydra has changed the current folder.

    Both happen in place, the former by ``read_environment``. Paths are relative to the folder in which the command was
    started. With ``hydra.job.chdir=true`` they would lead to other files than those that were checked.
    """
    interpolations.read_environment(config)
    started_in = Path(HydraConfig.get().runtime.cwd)
    if Path.cwd() != started_in and isinstance(config["paths"], DictConfig):
        for key, path in config["paths"].items():
            if isinstance(path, str) and path:
                config["paths"][key] = str(started_in / path)


class Ending(Callback):
    """Hydra callback that passes the error of a single run to ``main``, since Hydra would print more lines with it.

    It is the last callback of the config, so that all others receive the error first.
    """

    def on_run_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Keep a failed run's error for ``main`` and report the job to Hydra as completed."""
        if job_return.status == JobStatus.FAILED:
            _errors.append(job_return._return_value)
            job_return.status = JobStatus.COMPLETED


_errors: list[Exception] = []


def _check_command_line(arguments: list[str]) -> list[str]:
    """Check the arguments of the command line and return them in the form that Hydra receives.

    In a sweep, overrides of settings in config groups become sweeps over one value, see :func:`as_sweep_override`.

    Raises:
        ConfigError: for arguments that Hydra's parser refuses, for ``--experimental-rerun``, and for two different
            choices in one config group, of which Hydra would take the last without a message. Also for an interval in
            a list, and for a setting of sweeps without ``-m``, which Hydra would not use.
    """

    def refuse(message: str) -> NoReturn:
        between = message.startswith("unrecognized arguments: ") and "=" in message and "--" not in message
        hint = "; options such as -m stand before or after all key=value, not between" if between else ""
        raise ConfigError(f"command line: {message}{hint}")

    parser = get_args_parser()
    parser.error = refuse
    parsed = parser.parse_args(arguments)
    if parsed.experimental_rerun is not None:
        refuse("--experimental-rerun cannot be used; the same command resumes a run")
    groups = {str(path.parent.relative_to(CONFIGS)) for path in CONFIGS.glob("*/**/*.yaml")}
    chosen: dict[str, str] = {}
    for override in parsed.overrides:
        if re.match(r"[^=]+=\s*\[.*\binterval\(", override):
            raise ConfigError(f"{override}: an interval cannot be inside a list")
        group, _, name = override.partition("=")
        if group in groups and chosen.setdefault(group, name) != name:
            raise ConfigError(f"{group}={name}: {group}={chosen[group]} is given too; give one of them")
    if not (parsed.multirun or "hydra.mode=MULTIRUN" in parsed.overrides):
        unused = next((word for word in parsed.overrides if word.startswith(OF_SWEEPS)), None)
        if unused and not (parsed.cfg or parsed.info):
            raise ConfigError(f"{unused}: is for sweeps; give -m too")
        return arguments
    swept = {override: as_sweep_override(override, groups) for override in parsed.overrides}
    return [swept.get(argument, argument) for argument in arguments]


def main() -> None:
    """Run the command line. Exit code 0: no run failed; 1: a run failed or diverged; 2: bad input; 130: interrupted."""
    debugging = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise errors here instead of printing them
    register()
    process.raise_on_interrupt()
    try:
        with stopping.sigterm_as_interrupt():
            _errors.clear()
            sys.argv[1:] = _check_command_line(sys.argv[1:])
            _hydra_main()
            if _errors:  # the error of a single run; a sweep raises its error itself
                raise _errors[0]
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = explain(error)
        if debugging or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(1 if isinstance(error, RunFailed) else 2)
    finally:
        parallel.disconnect()


if __name__ == "__main__":
    # under its own name: a worker cannot unpickle objects of the module __main__, since its __main__ is another module
    from wdlab import train

    process.run_and_exit(train.main)
