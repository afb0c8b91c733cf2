"""The list of runs: the state of each, and retrying those that did not end well."""

import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.conftest import PROJECT
from tests.test_train import same_ending
from wdlab import loop, runs, session
from wdlab.errors import RunFailed
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import compose_config, run_name

LONG = ("train.steps=200000", "train.log_every=100", "train.eval_every=100000", "logger=disabled", "runtime.threads=1")


def made(
    root, name, status=None, config="train:\n  steps: 20\n", metrics='{"step": 0}\n{"step": 10}\n'
) -> RunDirectory:
    """Make a directory with the given files, as a run would write them."""
    directory = RunDirectory(root, name)
    directory.create()
    if status is not None:
        directory.write("status.json", status)
    if config is not None:
        directory.config.write_text(config)
    if metrics is not None:
        directory.metrics.write_text(metrics)
    return directory


def states(root) -> dict[str, str]:
    return {entry.run: entry.state for entry in runs.entries(root)}


def test_every_state_is_listed_with_its_step_and_its_error(tmp_path):
    where = {"host": "here", "pid": 12}
    for status in ("done", "interrupted", "running"):
        made(tmp_path, status, {"status": status, "step": 10, **where})
    made(tmp_path, "diverged", {"status": "diverged", "step": 10})
    made(tmp_path, "failed", {"status": "failed", "error": "first line\nValueError: the last line"})
    made(tmp_path, "begun", None)
    made(tmp_path, "empty", None, None, None)
    made(tmp_path, "damaged", None).path.joinpath("status.json").write_text('{"status": "do')
    made(tmp_path, "of-another-kind", {"status": "sleeping"})
    (tmp_path / "a-file").write_text("")
    (tmp_path / ".records.parquet").write_text("")
    found = {entry.run: entry for entry in runs.entries(tmp_path)}
    assert {name: entry.state for name, entry in found.items()} == {
        **{name: name for name in ("done", "interrupted", "diverged", "failed")},
        **{
            "running": "stale",
            "begun": "stale",
            "empty": "new",
            "damaged": "unreadable",
            "of-another-kind": "unreadable",
        },
    }
    assert found["failed"].error == "ValueError: the last line"
    assert found["diverged"].error == "the loss was not finite at step 10" and found["done"].error is None
    assert (found["done"].step, found["done"].steps, found["done"].pid, found["done"].host) == (10, 20, 12, "here")
    assert 0 <= found["done"].age_seconds < 60
    assert (found["empty"].step, found["empty"].steps, found["empty"].age_seconds) == (0, None, None)


def test_problems_come_last_and_names_in_order(tmp_path):
    for name, status in {"b": "done", "a": "failed", "c": "done", "d": "running"}.items():
        made(tmp_path, name, {"status": status, "error": "x"})
    assert [entry.run for entry in runs.entries(tmp_path)] == ["b", "c", "a", "d"]


def test_a_lock_that_is_held_is_a_run_that_runs(tmp_path):
    directory = made(tmp_path, "a-run", {"status": "running", "pid": 12, "host": "here"})
    with directory.lock():
        assert states(tmp_path) == {"a-run": "running"}
        directory.write_status("interrupted")  # by the process before; this one has not come to its own yet
        assert states(tmp_path) == {"a-run": "running"}
        assert runs.entry_of(directory).pid is None
    assert states(tmp_path) == {"a-run": "interrupted"}


def test_listing_makes_no_file(tmp_path):
    directory = made(tmp_path, "a-run", {"status": "running"})
    before = sorted(tmp_path.rglob("*"))
    assert states(tmp_path) == {"a-run": "stale"} and sorted(tmp_path.rglob("*")) == before
    assert not directory.lock_file.exists()


def test_a_run_that_starts_while_it_is_listed_gets_its_lock(tmp_path):
    directory = made(tmp_path, "a-run", {"status": "stale"})
    looking = directory.lock_file.open("w")
    fcntl.flock(looking, fcntl.LOCK_SH)  # as the ledger does, which lets it go much sooner
    threading.Timer(0.05, looking.close).start()
    with directory.lock():
        assert states(tmp_path) == {"a-run": "running"}


def test_a_run_that_ends_while_it_is_listed_is_not_stale(tmp_path, monkeypatch):
    directory = made(tmp_path, "a-run", {"status": "running"})
    looks = iter([lambda: directory.write_status("done")])

    def look(_):
        next(looks, lambda: None)()
        return False

    monkeypatch.setattr(RunDirectory, "is_locked", property(look))
    assert runs.entry_of(directory).state == "done"


def test_foreign_bytes_never_end_in_a_traceback(tmp_path):
    draw = random.Random(0)
    contents = [
        *(
            b"",
            b"\0" * 40,
            b"\xff\xfe",
            b"[",
            b"[" * 100_000 + b"\n",
            b"[1]\n",
            b"null\n",
            b"1e999\n",
            b'{"step": null}\n',
        ),
        *(
            b'{"step": Infinity}\n',
            b'{"step": [1]}\n',
            b"a: [1\n",
            b"- 1\n",
            b"? [1]: 2\n",
            b"train: 3\n",
            b"!!timestamp x\n",
        ),
        *(b'{"status": 3}', b'{"status": ["done"]}', b'{"status": "failed", "error": ""}', b'{"status": "failed"}'),
        *(draw.randbytes(50) for _ in range(20)),
    ]
    for number, content in enumerate(contents):
        for file in ("status.json", "metrics.jsonl", "config.yaml", "lock"):
            folder = made(tmp_path, f"{number}-{file}", {"status": "interrupted"}).path
            (folder / file).write_bytes(content)
    for file in ("status.json", "metrics.jsonl", "config.yaml", "lock"):
        folder = made(tmp_path, f"folder-{file}", None, None, None).path
        (folder / file).mkdir()
        (made(tmp_path, f"link-{file}", None, None, None).path / file).symlink_to("nowhere")
        os.mkfifo(made(tmp_path, f"pipe-{file}", None, None, None).path / f"{file}.pipe")
    found = runs.entries(tmp_path)
    assert len(found) == 4 * len(contents) + 12 and {entry.state for entry in found} <= {*runs.STATES}
    assert states(tmp_path)["0-status.json"] == "unreadable" and states(tmp_path)["0-config.yaml"] == "interrupted"
    json.dumps([vars(entry) for entry in found])
    list(runs.table_lines(found, 80))


def test_the_table_keeps_names_whole_and_fits_a_terminal(tmp_path):
    name = "tinyshakespeare-mlp_factorized-adam-gradient_scale-" + "0123456789ab"
    made(tmp_path, name, {"status": "failed", "error": "RuntimeError: " + "long " * 100})
    made(tmp_path, "escape\x1b[2J", {"status": "failed", "error": "red \x1b[31m"})
    (tmp_path / os.fsdecode(b"no-text-\xff")).mkdir()
    lines = list(runs.table_lines(runs.entries(tmp_path), 80))
    assert sum(line.endswith(f"  {name}") for line in lines) == 1
    assert any(len(line) == 80 and line.endswith("...") for line in lines)
    assert all(line.isprintable() for line in lines) and any(r"no-text-\udcff" in line for line in lines)
    assert all("..." not in line for line in runs.table_lines(runs.entries(tmp_path), None))


def test_the_settings_in_which_the_listed_runs_differ_are_listed(tmp_path):
    def lines(columns=None):
        return [line for line in runs.table_lines(runs.entries(tmp_path), columns) if line.startswith("    ")]

    common = ("model.width=8", "regularizer=l2")
    settings = {
        "a": ("seed=0", "optimizer.lr=0.5", "regularizer/over_time=early"),
        "b": ("seed=0", "optimizer.lr=0.25", "train.steps=7", "runtime.threads=1"),
    }
    for name, own in settings.items():
        made(tmp_path, name, {"status": "done"}, None).write_config(compose_config([*common, *own]))
    made(tmp_path, "damaged", {"status": "done"}, "[")
    assert lines() == [
        "    lr=0.5 over_time=early epochs=5 steps=1000",
        "    lr=0.25 steps=7",
    ]
    assert lines(20) == ["    lr=0.5 over_t...", "    lr=0.25 steps=7"]
    loop = "regularizer: {x: &x {y: *x, lr: 1}}\noptimizer: {lr: 1}\n"
    made(tmp_path, "of itself", {"status": "done"}, loop)
    made(tmp_path, "c", {"status": "failed", "error": "x"}, "regularizer: {lr: 2}\noptimizer: {lr: 3}\nseed: [1, 2]\n")
    assert lines()[-2] == "    optimizer.lr=3 regularizer.lr=2 seed=[1, 2]" and lines()[-1] == "    x"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, "-"), (0.4, "0 s"), (59, "59 s"), (60, "1 min"), (90_000, "1 d")]
)
def test_ages_have_one_unit(seconds, shown):
    assert runs._age(seconds) == shown


def test_the_command_lists_filters_and_speaks_json(shell, command, tmp_path):
    folder = tmp_path / "results" / "runs"
    for name, status in {"a": "done", "b": "failed", "c": "running"}.items():
        made(folder, name, {"status": status, "error": "ValueError: x", "pid": 5, "host": "there"})
    listed = shell(module="wdlab.runs")
    assert listed.returncode == 0 and listed.stderr == ""
    rows = r"^failed +10/20 +\d+ s  b\n    ValueError: x\nstale +10/20 +\d+ s  c\n    was process 5 on there$"
    assert re.search(rows, listed.stdout, re.MULTILINE)
    assert "\n3 runs: 1 done, 1 failed, 1 stale\n--retry-failed resumes those" in listed.stdout
    found = json.loads(command("results/runs", "--json", "--status", "failed,stale", main=runs.main).stdout)
    assert [entry["run"] for entry in found] == ["b", "c"]
    fields = ("run", "path", "state", "step", "steps", "age_seconds", "host", "pid", "error", "settings")
    assert tuple(found[0]) == fields


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: nowhere: is no folder of runs, No such file or directory"),
        (["a-file"], "error: a-file: is no folder of runs, Not a directory"),
        ([".", "--status", "lost"], "error: --status lost: must be one of done, new, running, interrupted, diverged"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    with pytest.raises(SystemExit, match="2"):
        runs.main(arguments)
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(message) and shown.err.count("\n") == 1


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path):
    for number in range(3000):
        (tmp_path / f"a-run-with-a-rather-long-name-{number:012d}").mkdir()
    command = f"{sys.executable} -m wdlab.runs {tmp_path} | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("state") and done.stderr == ""


def failing(monkeypatch, config) -> None:
    """Let a run fail once."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", lambda *_: 1 / 0)
        with pytest.raises(RunFailed):
            session.run(config)


def retried(folder, *arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        runs.main([str(folder), "--retry-failed", *arguments])
    return ended.value.code


def test_what_failed_or_lost_its_process_is_done_after_a_retry(compose, tmp_path, monkeypatch, capsys):
    failed, killed, begun, diverged = (
        compose("seed=1"),
        compose("seed=2"),
        compose("seed=3"),
        compose("optimizer.lr=1e30"),
    )
    failing(monkeypatch, failed)
    session.run(killed)
    RunDirectory.of(killed).write_status("running")  # as if killed before its status was written
    records = RunDirectory.of(killed).metrics.read_bytes()
    RunDirectory.of(begun).create()
    RunDirectory.of(begun).write_config(begun)
    with pytest.raises(RunFailed):
        session.run(diverged)
    (tmp_path / "runs").rename(tmp_path / "moved")  # runs are resumed where they are
    assert retried(tmp_path / "moved") == 0
    assert sorted(states(tmp_path / "moved").values()) == ["diverged", "done", "done", "done"]
    assert RunDirectory(tmp_path / "moved", run_name(killed)).metrics.read_bytes() == records
    assert not (tmp_path / "runs").exists()
    shown = capsys.readouterr().out
    assert "3 runs: 1 failed, 2 stale; to be retried" in shown and "retried 3 runs: 3 done" in shown
    assert retried(tmp_path / "moved") == 0 and capsys.readouterr().out == "nothing to retry\n"


def test_one_that_fails_again_does_not_stop_the_others(compose, tmp_path, monkeypatch, capsys):
    configs = [compose(f"seed={seed}") for seed in range(4)]
    for config in configs:
        failing(monkeypatch, config)
    fit, errors = loop.fit, iter([ValueError("again"), SystemExit(3), None, None])

    def sometimes(*arguments):
        error = next(errors)
        if error is not None:
            raise error
        return fit(*arguments)

    monkeypatch.setattr(loop, "fit", sometimes)
    assert retried(tmp_path / "runs") == 1
    shown = capsys.readouterr().out
    assert re.search(r"^  digits-mlp-sgd-none-\w+: digits-\S+: failed, ValueError: again$", shown, re.MULTILINE)
    assert re.search(r"failed, sys.exit\(3\) was called$", shown, re.MULTILINE)
    assert sorted(states(tmp_path / "runs").values())[:2] == ["done", "done"]


def test_a_run_that_would_have_another_name_today_is_reported_and_left_alone(compose, tmp_path, monkeypatch, capsys):
    config = compose()
    failing(monkeypatch, config)
    directory = RunDirectory.of(config)
    directory.config.write_text(
        directory.config.read_text().replace("\nseed: 0", "\nseed: 9").replace("seed: 0\n", "seed: 9\n")
    )
    before = {path: path.read_bytes() for path in directory.path.iterdir() if path.is_file()}
    assert retried(tmp_path / "runs") == 1
    assert re.search(r"left alone, today its config\.yaml is that of digits-mlp-sgd-none-\w+", capsys.readouterr().out)
    assert {path: path.read_bytes() for path in directory.path.iterdir() if path.is_file()} == before
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [directory.name]


def test_only_the_chosen_states_are_retried_and_json_stays_json(compose, tmp_path, monkeypatch, capsys):
    failing(monkeypatch, compose("seed=1"))
    killed = compose("seed=2")
    session.run(killed)
    RunDirectory.of(killed).write_status("running")
    assert retried(tmp_path / "runs", "--status", "stale", "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == [] and "retried 1 runs: 1 done" in shown.err
    assert sorted(states(tmp_path / "runs").values()) == ["done", "failed"]


def test_a_killed_process_makes_a_run_stale_and_a_retry_ends_it_as_if_never_killed(tmp_path, capsys):
    short = (*LONG, "train.steps=4000", "train.eval_every=2000", "runtime.checkpoint_seconds=0.05", "runtime=cpu")
    command = [sys.executable, "-m", "wdlab.train", *short, f"paths.runs={tmp_path / 'killed'}"]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    try:
        assert "started" in process.stdout.readline()
        (entry,) = runs.entries(tmp_path / "killed")
        assert (entry.state, entry.pid) == ("running", process.pid)
        while not RunDirectory(tmp_path / "killed", entry.run).checkpoint.exists():
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    assert states(tmp_path / "killed") == {entry.run: "stale"}
    assert retried(tmp_path / "killed") == 0
    assert f"{entry.run}: resumed at step" in capsys.readouterr().out
    session.run(compose_config([*short, f"paths.runs={tmp_path / 'whole'}"]))
    same_ending(RunDirectory(tmp_path / "whole", entry.run), RunDirectory(tmp_path / "killed", entry.run))


def test_an_interrupted_retry_keeps_what_was_done(tmp_path):
    config = compose_config([*LONG, f"paths.runs={tmp_path}"])
    RunDirectory.of(config).create()
    RunDirectory.of(config).write_config(config)  # and there it was killed
    command = [sys.executable, "-m", "wdlab.runs", str(tmp_path), "--retry-failed"]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "to be retried" in process.stdout.readline() and "started" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130 and message.strip() == "interrupted; the same command resumes from here"
    assert [*states(tmp_path).values()] == ["interrupted"]
