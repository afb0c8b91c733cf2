"""The call that a SLURM job executes, which requeues the job if it has to end before its run is done.

Imported only if ``hydra/launcher=slurm`` is chosen, since it needs submitit.
"""

import signal
import subprocess
import sys
import time
from typing import Any

import submitit
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher import submitit_launcher

SQUEUE_ATTEMPTS = 10  # calls of squeue; if all of them fail, the job counts as cancelled
SECONDS_BETWEEN_ATTEMPTS = 1


class RequeueingCall(submitit_launcher.SlurmLauncher):
    """Callable that is pickled and executed on the cluster: trains one run, requeues the job if it has to end early."""

    def __call__(self, *arguments: Any) -> JobReturn:
        """Train the run and return its result.

        If a signal interrupts the run, this process ends after the run has written its checkpoint. Before that the job
        is requeued, unless it was cancelled.

        Args:
            arguments: the arguments of the base class's method, which describe the run.
        """
        job = submitit.JobEnvironment()
        time_is_up = getattr(signal, f"SIG{job.USR_SIG}")
        requeue = signal.getsignal(time_is_up)  # submitit's handler
        signal.signal(time_is_up, lambda *_: signal.raise_signal(signal.SIGTERM))
        # In force before and after the training. During the training the run has its own handler and ends after a step.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return super().__call__(*arguments)
        except KeyboardInterrupt:
            # SLURM sends the signals to every process of the job; the programs started below have to ignore them too.
            for number in (signal.SIGTERM, time_is_up):
                signal.signal(number, signal.SIG_IGN)
            if _state(job.job_id) == "RUNNING":  # at its time limit, or preempted by a job of higher priority
                requeue(time_is_up, None)
            sys.exit(130)  # cancelled, or already requeued


def _state(job: str) -> str:
    """Return the SLURM state of a job by its id: RUNNING, or COMPLETING after its cancellation; "" if squeue fails."""
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    for _ in range(SQUEUE_ATTEMPTS):  # squeue may fail while many jobs end at once
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
        if listed.returncode == 0:
            break
        time.sleep(SECONDS_BETWEEN_ATTEMPTS)
    return listed.stdout.strip()
