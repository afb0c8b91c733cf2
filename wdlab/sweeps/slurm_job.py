"""The call that a SLURM job runs. It requeues itself when it has to end before its run is done.

Imported only where ``hydra/launcher=slurm`` is chosen: it needs submitit.
"""

import signal
import subprocess
import sys
import time
from typing import Any

from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher import submitit_launcher

QUESTIONS = 10  # attempts before an unanswered squeue counts as the end of the job
SECONDS_BETWEEN_QUESTIONS = 1


class RequeueingCall(submitit_launcher.SlurmLauncher):
    """What runs in the cluster: one run, pickled. It gives itself back to the queue if it has to end too early."""

    def __call__(self, *arguments: Any) -> JobReturn:
        """Do the run. If it was asked to end, this process ends too, once the run has written its checkpoint."""
        import submitit

        job = submitit.JobEnvironment()
        time_is_up = getattr(signal, f"SIG{job.USR_SIG}")
        requeue = signal.getsignal(time_is_up)  # submitit's
        signal.signal(time_is_up, lambda *_: signal.raise_signal(signal.SIGTERM))
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # before and after training; then it ends at a step
        try:
            return super().__call__(*arguments)
        except KeyboardInterrupt:
            for number in (signal.SIGTERM, time_is_up):  # done what they should; also for the programs started here,
                signal.signal(number, signal.SIG_IGN)  # SLURM sends them to every process of the job
            if _state(job.job_id) == "RUNNING":  # out of time, or out of the way of a job that matters more
                requeue(time_is_up, None)
            sys.exit(130)  # cancelled, or already requeued


def _state(job: str) -> str:
    """What SLURM has in mind with a job: RUNNING until it wants it away for good, then COMPLETING; empty: no answer."""
    question = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    for _ in range(QUESTIONS):  # when many jobs end at once it is busy
        answer = subprocess.run(question, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            break
        time.sleep(SECONDS_BETWEEN_QUESTIONS)
    return answer.stdout.strip()
