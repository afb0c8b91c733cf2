"""``hydra/launcher=slurm``: every run of a sweep is a job of a cluster, and gives itself back to the queue in time.

Chosen in ``configs/hydra/launcher/slurm.yaml``, registered by ``register``. hydra-submitit-launcher carries the runs
there. This adds what a sweep needs to survive: a run that is asked to end finishes its step and writes a checkpoint
before it is requeued, and a job that is lost does not take the others' results with it.
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

from wdlab.errors import ConfigError, RunFailed
from wdlab.records.identity import PROJECT

if TYPE_CHECKING:  # it takes its time to import
    import submitit


SBATCH_NAMES = {"name": "job_name", "timeout_min": "time", "mem_gb": "mem"}
WHOLE = {"timeout_min": 1, "signal_delay_s": 0, "array_parallelism": 1, "max_num_timeout": 0}  # the least they can be
WHOLE_OR_NULL = {"cpus_per_task": 1, "gpus_per_node": 0, "mem_gb": 1}
LARGEST_ARRAY = 1000  # what SLURM allows where nobody has changed it
STOPPING = (signal.SIGINT, signal.SIGTERM)  # what ends the command that waits
SECONDS_BETWEEN_LOOKS = 1
SECONDS_BETWEEN_QUESTIONS = 10
SECONDS_FOR_FILES = 15  # that another machine has written, until they are seen here


class SlurmLauncher(Launcher):
    """Submits the runs as job arrays and waits for them.

    Args:
        folder: of scripts, pickles and the jobs' output; every machine must see it.
        max_num_timeout: how often a run may run out of time and go on.
        setup: shell lines before each job.
        sbatch: what the job arrays are submitted with, as in hydra-submitit-launcher.
    """

    def __init__(self, folder: str, max_num_timeout: int, setup: Sequence[str] | None = None, **sbatch: Any) -> None:
        self._folder, self._max_num_timeout, self._setup = folder, max_num_timeout, setup
        self._sbatch = {key: value for key, value in sbatch.items() if value is not None}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra.

        Raises:
            ConfigError: for a number that is none, or where there is no SLURM.
        """
        from wdlab.sweeps.slurm_job import RequeueingCall  # which needs submitit

        self._job = RequeueingCall()
        self._job.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        given = self._sbatch | {"max_num_timeout": self._max_num_timeout}
        for key, least in (WHOLE | WHOLE_OR_NULL).items():
            value = given.get(key)
            if value is None and key in WHOLE_OR_NULL:
                continue
            if type(value) is not int or value < least:
                null = "null or " if key in WHOLE_OR_NULL else ""
                raise ConfigError(f"hydra.launcher.{key}={value}: must be {null}a whole number >= {least}")
        for program in ("sbatch", "squeue", "srun"):
            if shutil.which(program) is None:
                raise ConfigError(f"hydra/launcher=slurm: {program} is not here; start the sweep on a SLURM cluster")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Submit the runs, wait until all have ended. A job that was lost is a failed one, and its run not done.

        Raises:
            ConfigError: if SLURM does not take them.
            KeyboardInterrupt: on SIGINT and SIGTERM; the jobs go on.
        """
        from submitit.core.utils import FailedJobError

        calls = [
            (list(overrides), "hydra.sweep.dir", number, "", Singleton.get_state())
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        left, jobs = iter(calls), []
        try:
            while some := list(islice(left, LARGEST_ARRAY)):
                jobs += self._executor().map_array(self._job, *zip(*some, strict=True))
        except FailedJobError as error:
            raise ConfigError(f"hydra/launcher=slurm: {str(error).strip().splitlines()[-1]}") from error
        arrays = " ".join(dict.fromkeys(job.job_id.split("_")[0] for job in jobs))
        print(f"SLURM has them: squeue --job={arrays.replace(' ', ',')}; output in {jobs[0].paths.folder}", flush=True)
        queue = _Queue()
        previous = {number: signal.signal(number, signal.default_int_handler) for number in STOPPING}
        try:
            return [_result(job, queue) for job in jobs]
        except KeyboardInterrupt:
            print(f"the jobs go on without this command; to end them: scancel {arrays}", file=sys.stderr)
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _executor(self) -> "submitit.SlurmExecutor":
        import submitit

        executor = submitit.SlurmExecutor(os.path.normpath(self._folder), max_num_timeout=self._max_num_timeout)
        sbatch = self._sbatch | ({"mem_gb": f"{self._sbatch['mem_gb']}G"} if "mem_gb" in self._sbatch else {})
        executor.update_parameters(
            setup=[*_environment(), *(self._setup or ())],
            **{SBATCH_NAMES.get(key, key): value for key, value in sbatch.items()},
        )
        return executor


def _environment() -> list[str]:
    """Shell lines with which a job finds this code and the data, and uses the cores it was given and no others."""
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    given = {"PYTHONPATH": os.pathsep.join(paths)}
    if "WDLAB_DATA" in os.environ:
        given["WDLAB_DATA"] = str(Path(os.environ["WDLAB_DATA"]).absolute())
    return [
        *(f"export {name}={shlex.quote(value)}" for name, value in given.items()),
        "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}",  # srun no longer takes it from sbatch
        "export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}",
    ]


class _Queue:
    """Which of our jobs SLURM still has. While it does not answer, it has them all."""

    def __init__(self) -> None:
        self._asked = float("-inf")
        self._jobs: set[str] | None = None

    def has(self, job: str) -> bool:
        """Asked of SLURM now and then only."""
        if time.monotonic() - self._asked >= SECONDS_BETWEEN_QUESTIONS:
            question = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
            answer = subprocess.run(question, capture_output=True, text=True, check=False)
            self._jobs = set(answer.stdout.split()) if answer.returncode == 0 else None
            self._asked = time.monotonic()
        return self._jobs is None or job in self._jobs


def _result(job: "submitit.SlurmJob[JobReturn]", queue: _Queue) -> JobReturn:
    """What a job returned, once it has; a failed one if it ended otherwise."""
    from submitit.core.utils import UncompletedJobError

    result = job.paths.result_pickle
    while not result.exists() and queue.has(job.job_id):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    gone = time.monotonic()
    while not result.exists() and time.monotonic() - gone < SECONDS_FOR_FILES:
        any(result.parent.iterdir())  # makes a network file system look again
        time.sleep(SECONDS_BETWEEN_LOOKS)
    try:
        if result.exists():
            return job.result()
        reason = "ended without a result"
    except UncompletedJobError:
        reason = "failed"
    error = RunFailed(f"SLURM job {job.job_id} {reason}; its output is in {job.paths.stderr}")
    return JobReturn(status=JobStatus.FAILED, _return_value=error)
