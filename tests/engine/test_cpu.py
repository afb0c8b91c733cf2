"""Choices that depend on the processor at hand, and their records."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from wdlab import session
from wdlab.engine import cpu, device
from wdlab.records.directory import RunDirectory

SMALL = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
CONVOLUTION = nn.Conv2d(3, 8, 3)


@pytest.fixture
def four_threads(monkeypatch):
    """A machine with four cores, which gives each of four threads a settable share of a core."""
    shares = {"now": 1.0}
    monkeypatch.setattr(cpu, "available_threads", lambda: 4)
    monkeypatch.setattr(cpu, "share_of_cores", lambda threads: shares["now"])
    return shares


def test_threads_follow_the_work(four_threads):
    assert cpu.multiply_adds(SMALL) == 64 * 64 + 640
    assert cpu.threads_for(SMALL, 64) == 1
    assert cpu.threads_for(SMALL, 64 * 1000) == 4  # a thousand runs side by side
    assert cpu.threads_for(CONVOLUTION, 64) == 4 and cpu.threads_for(SMALL, None) == 4


def test_next_to_other_work_one_thread_trains(four_threads):
    four_threads["now"] = 0.5
    assert cpu.threads_for(CONVOLUTION, 64) == 1


def test_the_share_of_the_cores_is_a_share_and_leaves_the_threads_unchanged():
    before = torch.get_num_threads()
    assert 0 < cpu.share_of_cores(1) <= 1
    assert torch.get_num_threads() == before


def test_a_resumed_run_keeps_its_threads(compose, monkeypatch):
    monkeypatch.setattr(cpu, "available_threads", lambda: 2)
    config, before = compose("train.steps=10"), torch.get_num_threads()
    choices = iter((2, 1))
    monkeypatch.setattr(cpu, "threads_for", lambda *_: next(choices))
    try:
        session.run(config)
        directory = RunDirectory.of(config)
        directory.write_status("running")
        session.run(config)
    finally:
        torch.set_num_threads(before)
    sessions = directory.read("provenance.json")["sessions"]
    assert [session["threads"] for session in sessions] == [2, 2]
    assert "GOMP_SPINCOUNT" in sessions[0]["environment"] or "OMP_WAIT_POLICY" in sessions[0]["environment"]


@pytest.mark.parametrize("factor", [0.4, 12.0])
def test_bf16_warns_where_it_is_slower_than_fp32(compose, caplog, monkeypatch, factor):
    monkeypatch.setattr(cpu, "bf16_time_ratio", lambda convolution: factor)
    device._warn_of_slow_bf16.cache_clear()
    config = compose("runtime.precision=bf16")
    with caplog.at_level("WARNING", logger="wdlab"):
        device.set_up(config["runtime"], SMALL)
        device.set_up(config["runtime"], SMALL)
    device._warn_of_slow_bf16.cache_clear()
    warnings = [line for line in caplog.messages if "bf16" in line]
    warning = "runtime.precision=bf16: products take 12.0 times as long as in fp32 on this processor"
    assert warnings == ([warning] if factor > 1 else [])


@pytest.mark.parametrize("convolution", [False, True])
def test_the_cost_of_bf16_is_measured(convolution):
    assert cpu.bf16_time_ratio(convolution) > 0


def test_the_processors_name_has_its_instruction_set():
    assert cpu.processor_name().endswith(f"({torch.backends.cpu.get_cpu_capability()})")
    assert device.device_name(torch.device("cpu")) == cpu.processor_name()


WAITING = "import wdlab, os; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "3000 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE"),
    ],
)
def test_waiting_threads_spin_for_a_bounded_time_unless_the_user_decides(given, expected):
    others = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ended = subprocess.run(
        [sys.executable, "-c", WAITING], env=others | given, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == expected.split()
