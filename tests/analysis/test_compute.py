"""Hours of runs: what runs share counts once."""

import pytest

from wdlab.analysis.compute import spent
from wdlab.records.directory import RunDirectory

DAY = "2026-01-31"


@pytest.fixture
def ran(tmp_path):
    """Leave the records of a run and return its directory."""

    def _ran(name: str, *sessions: str, until: str, device: str = "X", threads: int = 1, pid: int = 1) -> RunDirectory:
        directory = RunDirectory(tmp_path, name)
        directory.create()
        common = {"device": device, "threads": threads}
        begun = [{"time": f"{DAY}T{time}:00Z", **common} for time in sessions]
        directory.write("provenance.json", {"sessions": begun})
        directory.write("status.json", {"status": "done", "time": f"{DAY}T{until}:00Z", "pid": pid, "host": "h"})
        return directory

    return _ran


def test_runs_of_a_stack_share_their_time(ran):
    stack = [
        ran(name, "10:00", until=until, threads=2) for name, until in (("a", "11:30"), ("b", "11:00"), ("c", "11:30"))
    ]
    assert spent(stack) == {"X": {"hours": 1.5, "core_hours": 3.0}}


def test_runs_one_after_another_add_up_without_the_pause(ran):
    assert spent([ran("a", "10:00", until="10:30"), ran("b", "11:00", until="11:15")])["X"]["hours"] == 0.75


def test_processes_side_by_side_share_the_device_and_not_the_cores(ran):
    two = [ran("a", "10:00", until="11:00", pid=1), ran("b", "10:00", until="11:00", pid=2)]
    assert spent(two) == {"X": {"hours": 1.0, "core_hours": 2.0}}


def test_devices_are_apart_and_a_resumed_run_counts_with_its_last_session(ran):
    runs = [ran("a", "08:00", "10:00", until="11:00", device="Y"), ran("b", "10:00", until="10:30")]
    assert spent(runs) == {"X": {"hours": 0.5, "core_hours": 0.5}, "Y": {"hours": 1.0, "core_hours": 1.0}}


def test_without_runs_nothing_was_spent(tmp_path):
    assert spent([]) == {} == spent([RunDirectory(tmp_path, "never-started")])
