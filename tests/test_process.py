"""The start and end of a command line's process: garbage collections, exit codes, what still runs at the end."""

import subprocess
import sys

import pytest

from tests.conftest import PROJECT

AT_EXIT = "import atexit; atexit.register(lambda: print('at exit')); from wdlab.process import run_and_exit\n"


def python(*words: str, path: str = "") -> subprocess.CompletedProcess:
    environment = {"PYTHONPATH": f"{path}:{PROJECT}"}
    return subprocess.run(
        [sys.executable, *words], env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=100
    )


def test_collections_go_on_for_new_objects_only():
    code = (
        "import gc; from wdlab import process\n"
        "process.resume_collections(); assert gc.isenabled() and gc.get_freeze_count() == 0\n"
        "process.pause_collections(); assert not gc.isenabled()\n"
        "process.resume_collections(); assert gc.isenabled() and gc.get_freeze_count() > 1000\n"
    )
    assert python("-c", code).returncode == 0


def test_the_command_line_that_trains_is_imported_without_collections(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import atexit, gc; atexit.register(lambda: print(gc.isenabled()))")
    for module, enabled in (("wdlab.train", "False"), ("wdlab.runs", "True")):
        assert python("-m", module, "--help", path=str(tmp_path)).stdout.splitlines()[-1] == enabled


@pytest.mark.parametrize("words", [("-m", "wdlab.train"), ("scripts/reproduce.py", "fig3")])
def test_ctrl_c_during_the_imports_is_one_line(words, tmp_path):
    for package in ("hydra", "pandas"):  # which the commands import early
        (tmp_path / f"{package}.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    ended = python(*words, path=str(tmp_path))
    assert ended.returncode == 130 and ended.stdout + ended.stderr == "interrupted before any run began\n"


@pytest.mark.parametrize(
    "body, code, complaint",
    [
        ("print('done')", 0, ""),
        ("print('done'); sys.exit()", 0, ""),
        ("print('done'); sys.exit(3)", 3, ""),
        ("print('done'); sys.exit('why')", 1, "why\n"),
        ("print('done'); 1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("threading.Timer(0.3, print, ['done']).start()", 0, ""),
    ],
)
def test_a_process_ends_with_its_code_its_output_and_what_is_registered(body, code, complaint):
    done = python("-c", f"import sys, threading\n{AT_EXIT}def main(): {body}\nrun_and_exit(main)")
    assert (done.returncode, done.stdout) == (code, "done\nat exit\n")
    assert done.stderr.endswith(complaint) and bool(done.stderr) == bool(complaint)


def test_a_process_ends_without_releasing_its_objects():
    code = f"{AT_EXIT}class Kept:\n    def __del__(self): print('released')\nkept = Kept()\nrun_and_exit(lambda: 0)"
    assert python("-c", code).stdout == "at exit\n"


def test_a_process_without_an_output_ends_well():
    command = f'{sys.executable} -c "from wdlab.process import run_and_exit; run_and_exit(int)" >&-'
    done = subprocess.run(command, shell=True, env={"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("sweep", [(), ("-m", "seed=0,1", "hydra/launcher=stacked")])
def test_a_training_ends_without_releasing_its_objects(sweep, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit = lambda code: print('quick end')")
    words = ("dataset=digits", "model=mlp", "model.width=4", "train.steps=2", "runtime.device=cpu", "logger=disabled")
    done = python("-m", "wdlab.train", *sweep, *words, f"paths.runs={tmp_path / 'runs'}", path=str(tmp_path))
    assert done.returncode == 0 and "quick end" in done.stdout, done.stderr
