"""Processes share several GPUs evenly. The GPUs are names only, the processes and their locks are real."""

import subprocess
import sys

import pytest

from tests.conftest import PROJECT

TAKE = """
import sys
from pathlib import Path
from wdlab.engine.gpus import claim_gpu
print(claim_gpu(sys.argv[2:], Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def take(tmp_path):
    """Start a process that takes a GPU and keeps it; returns the process and what it took."""
    processes = []

    def _take(*names: str) -> tuple[subprocess.Popen, str]:
        command = [sys.executable, "-c", TAKE, tmp_path, *names]
        process = subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        processes.append(process)
        return process, names[int(process.stdout.readline())]

    yield _take
    for process in processes:
        process.kill()
        process.communicate()


def test_each_process_takes_the_gpu_that_the_fewest_have_and_a_dead_one_has_none(take):
    taken = [take("A", "B", "C") for _ in range(7)]
    assert [name for _, name in taken] == ["A", "B", "C", "A", "B", "C", "A"]
    second = taken[1][0]
    second.kill()
    second.wait()
    assert take("A", "B", "C")[1] == "B"


def test_processes_that_see_different_gpus_agree_on_which_is_which(take):
    assert take("A", "B")[1] == "A"
    assert take("A", "C")[1] == "C"
    assert take("C", "B")[1] == "B"
