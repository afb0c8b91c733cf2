"""Settings of the process that computes."""

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource
import torch
from wdlab.engine import cpu

def faults_of_steps():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

by_default, kept = faults_of_steps(), cpu.keep_freed_memory()
faults_of_steps()
print(int(kept), by_default, faults_of_steps())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_the_memory_of_freed_tensors_is_used_again():
    """Count the pages that the system had to clear. A variable that the user has set is left alone."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    kept, by_default, faults = run(environment)
    assert kept and faults < by_default / 10
    kept, by_default, faults = run(environment | {"MALLOC_ARENA_MAX": "2"})
    assert not kept and faults > by_default / 10


def run(environment) -> list[int]:
    done = subprocess.run([sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]
