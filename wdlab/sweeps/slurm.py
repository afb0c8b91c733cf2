"""The launcher ``hydra/launcher=slurm``: every run of a sweep is a job of a SLURM cluster.

Chosen in ``configs/hydra/launcher/slurm.yaml``, registered by ``register``. hydra-submitit-launcher sends the runs to
the cluster. This module adds two things: a run that has to end early finishes its step and writes a checkpoint before
its job is requeued (``slurm_job``), and the results of the other jobs are kept if a job is lost.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from wdlab.engine import stopping
from wdlab.errors import ConfigError, RunFailed
from wdlab.records.identity import PROJECT

if TYPE_CHECKING:  # submitit is optional, and slow to import
    import submitit


# submitit's names of the launcher's settings, where they differ
SBATCH_NAMES = {"name": "job_name", "timeout_min": "time", "mem_gb": "mem"}
# smallest values of integer settings; the second dict has the settings that may also be null
SMALLEST_VALUES = {"timeout_min": 1, "signal_delay_s": 0, "array_parallelism": 1, "max_num_timeout": 0}
LEAST_UNLESS_NULL = {"cpus_per_task": 1, "gpus_per_node": 0, "mem_gb": 1}
MAX_ARRAY_SIZE = 1000  # SLURM's default limit
POLL_SECONDS = 1  # between two checks for a job's result
SQUEUE_SECONDS = 10  # between two calls of squeue
FILE_DELAY_SECONDS = 15  # how long a file that another machine has written may take to appear here
MISSING_PACKAGES = 'hydra/launcher=slurm: needs submitit and hydra-submitit-launcher, pip install -e ".[slurm]"'


class SlurmLauncher(Launcher):
    """Launcher that submits the runs as job arrays and waits for them.

    Args:
        folder: the folder for job scripts, pickles and the jobs' output, on a disk that every machine can access.
        max_num_timeout: how often a run may reach its time limit and be requeued.
        setup: shell lines that are run before each job; None for no lines.
        sbatch: settings of the job arrays, named as in hydra-submitit-launcher; None leaves a setting to the cluster.
    """

    def __init__(self, folder: str, max_num_timeout: int, setup: Sequence[str] | None = None, **sbatch: Any) -> None:
        self._folder, self._max_num_timeout, self._setup = folder, max_num_timeout, setup
        self._sbatch = {key: value for key, value in sbatch.items() if value is not None}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the settings and prepare the call that each job runs. Called by Hydra.

        Raises:
            ConfigError: if submitit or SLURM is not installed, or an integer setting is not an integer or is too small.
        """
        try:
            from wdlab.sweeps.slurm_job import RequeueingCall
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in ("submitit", "hydra_plugins"):
                raise
            raise ConfigError(MISSING_PACKAGES) from error
        self._call = RequeueingCall()
        self._call.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        given = self._sbatch | {"max_num_timeout": self._max_num_timeout}
        for key, least in (SMALLEST_VALUES | LEAST_UNLESS_NULL).items():
            value = given.get(key)
            if value is None and key in LEAST_UNLESS_NULL:
                continue
            if type(value) is not int or value < least:
                null = "null or " if key in LEAST_UNLESS_NULL else ""
                raise ConfigError(f"hydra.launcher.{key}={value}: must be {null}a whole number >= {least}")
        for program in ("sbatch", "squeue", "srun"):
            if shutil.which(program) is None:
                raise ConfigError(
                    f"hydra/launcher=slurm: {program} is not installed here; start the sweep on a SLURM cluster"
                )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Submit the runs and wait until all their jobs have ended. Called by the sweeper.

        Args:
            job_overrides: the overrides of each run.
            initial_job_idx: the number of the first run in the sweep.

        Returns:
            The results of the runs, in the order of ``job_overrides``. A job that SLURM lost has a failed result.

        Raises:
            ConfigError: if SLURM refuses the jobs.
            KeyboardInterrupt: on SIGINT or SIGTERM; the jobs continue.
        """
        from submitit.core.utils import FailedJobError

        calls = [
            (list(overrides), "hydra.sweep.dir", number, "", Singleton.get_state())
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        left, jobs = iter(calls), []
        try:
            while some := list(islice(left, MAX_ARRAY_SIZE)):
                jobs += self._executor().map_array(self._call, *zip(*some, strict=True))
        except FailedJobError as error:
            reason = str(error).strip().splitlines()[-1]
            hint = "is this a login node? docs/sweeps.md says how to try it without a cluster"
            raise ConfigError(f"hydra/launcher=slurm: {reason} ({hint})") from error
        arrays = " ".join(dict.fromkeys(job.job_id.split("_")[0] for job in jobs))
        print(f"submitted: squeue --job={arrays.replace(' ', ',')}; output in {jobs[0].paths.folder}", flush=True)
        queue = _Queue()
        previous = {number: signal.signal(number, signal.default_int_handler) for number in stopping.SIGNALS}
        try:
            return [_result(job, queue) for job in jobs]
        except KeyboardInterrupt:
            print(f"the jobs continue without this command; to end them: scancel {arrays}", file=sys.stderr)
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _executor(self) -> "submitit.SlurmExecutor":
        """Return a submitit executor, which submits job arrays with the settings of this launcher."""
        import submitit

        executor = submitit.SlurmExecutor(os.path.normpath(self._folder), max_num_timeout=self._max_num_timeout)
        sbatch = self._sbatch | ({"mem_gb": f"{self._sbatch['mem_gb']}G"} if "mem_gb" in self._sbatch else {})
        executor.update_parameters(
            setup=[*_environment(), *(self._setup or ())],
            **{SBATCH_NAMES.get(key, key): value for key, value in sbatch.items()},
        )
        return executor


def _environment() -> list[str]:
    """Return the shell lines that set a job's paths of this code and the data, and limit its threads to its cores."""
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    given = {"PYTHONPATH": os.pathsep.join(paths)}
    if "WDLAB_DATA" in os.environ:
        given["WDLAB_DATA"] = str(Path(os.environ["WDLAB_DATA"]).absolute())
    return [
        *(f"export {name}={shlex.quote(value)}" for name, value in given.items()),
        "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}",  # srun no longer inherits the number from sbatch
        "export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}",
    ]


class _Queue:
    """The user's SLURM jobs that have not ended, as squeue lists them. While squeue fails, no job counts as ended."""

    def __init__(self) -> None:
        self._last_call = float("-inf")
        self._jobs: set[str] | None = None

    def has(self, job: str) -> bool:
        """Return True if the job with this id has not ended or squeue fails. Calls squeue every ``SQUEUE_SECONDS``."""
        if time.monotonic() - self._last_call >= SQUEUE_SECONDS:
            command = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
            listed = subprocess.run(command, capture_output=True, text=True, check=False)
            self._jobs = set(listed.stdout.split()) if listed.returncode == 0 else None
            self._last_call = time.monotonic()
        return self._jobs is None or job in self._jobs


def _result(job: "submitit.SlurmJob[JobReturn]", queue: _Queue) -> JobReturn:
    """Wait for a job and return its result; a failed result with a RunFailed if the job ended without a result."""
    from submitit.core.utils import UncompletedJobError

    result = job.paths.result_pickle
    while not result.exists() and queue.has(job.job_id):
        time.sleep(POLL_SECONDS)
    ended = time.monotonic()
    while not result.exists() and time.monotonic() - ended < FILE_DELAY_SECONDS:
        any(result.parent.iterdir())  # makes a network file system refresh its list of files
        time.sleep(POLL_SECONDS)
    try:
        if result.exists():
            return job.result()
        reason = "ended without a result"
    except UncompletedJobError:
        reason = "failed"
    error = RunFailed(f"SLURM job {job.job_id} {reason}; its output is in {job.paths.stderr}")
    return JobReturn(status=JobStatus.FAILED, _return_value=error)
