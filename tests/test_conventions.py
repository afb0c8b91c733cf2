"""Conventions that users rely on: W&B's variables, python -OO, Hydra applications of their own."""

import subprocess
import sys

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime

from wdlab import evaluate, runs, session
from wdlab.errors import ConfigError
from wdlab.records import wandb_mirror
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import PROJECT, compose_config
from wdlab.validation import check_config

# -- W&B


@pytest.mark.parametrize(
    "variables, logger, expected",
    [
        ({}, "auto", "offline"),
        ({"WANDB_MODE": "disabled"}, "auto", None),
        ({"WANDB_DISABLED": "true"}, "auto", None),
        ({"WANDB_DISABLED": "false"}, "auto", "offline"),
        ({"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "auto", None),
        ({"WANDB_MODE": "online"}, "auto", "online"),
        ({"WANDB_MODE": "dryrun"}, "auto", "offline"),
        ({"WANDB_MODE": "disabled"}, "offline", "offline"),
        ({"WANDB_DISABLED": "true"}, "offline", "offline"),
        ({"WANDB_MODE": "online"}, "disabled", None),
    ],
)
def test_w_and_b_s_variables_decide_unless_a_logger_is_given(monkeypatch, tmp_path, variables, logger, expected):
    made = []
    monkeypatch.setattr(wandb_mirror, "WandbMirror", lambda mode, *_: made.append(mode))
    for name in ("WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = compose_config([f"logger={logger}"])["logger"]
    wandb_mirror.make_mirror(config, tmp_path, "name", {})
    assert made == ([expected] if expected else [])


def test_the_default_logger_is_that_of_the_environment(monkeypatch):
    assert compose_config([])["logger"]["mode"] == "auto"
    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(ConfigError, match="WANDB_MODE=sometimes: must be one of online, offline, disabled"):
        check_config(compose_config([]))
    check_config(compose_config(["logger=disabled"]))


def test_a_given_logger_wins_over_w_and_b_s_own_switch(compose, monkeypatch):
    monkeypatch.setenv("WANDB_DISABLED", "true")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    config = compose("logger=offline")
    assert session.run(config) == "done"
    assert len(list(RunDirectory.of(config).path.glob("wandb/offline-run-*"))) == 1


# -- python -OO


def test_the_commands_do_without_docstrings_and_asserts():
    code = (
        "import runpy, sys\n"
        "for module in ('wdlab.runs', 'wdlab.evaluate', 'wdlab.analysis.curves'):\n"
        "    sys.argv = [module, '--help']\n"
        "    try: runpy.run_module(module, run_name='__main__')\n"
        "    except SystemExit as ended: ended.code and sys.exit(module)\n"
        "from wdlab.sweeps import compose\n"
        "print(compose.as_sweep_override('model.width=8', ['model']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-OO", "-W", "ignore", "-c", code],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nmodel.width=8\n")  # without asserts Hydra's parser reads nothing
    assert "its directory" in done.stdout and "of the run directories" in done.stdout


# -- inside another application of Hydra


@pytest.fixture
def application(tmp_path):
    """Another application's Hydra, at work."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "app.yaml").write_text("mine: 3\n")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(tmp_path / "conf"), job_name="mine", version_base="1.3"):
        HydraConfig.instance().set_config(hydra_compose("app", return_hydra_config=True))
        yield lambda: hydra_compose("app")["mine"]
    HydraConfig.instance().cfg = None


def test_runs_train_are_evaluated_and_retried_inside_another_application(application, compose):
    before = GlobalHydra.instance().hydra
    config = compose()
    assert session.run(config) == "done"
    directory = RunDirectory.of(config)
    assert evaluate.evaluate(directory.path, [])["step"] == 20
    directory.write_status("interrupted", step=20)
    assert runs.retry([runs.entry_of(directory)]) == {} and directory.status == "done"
    assert GlobalHydra.instance().hydra is before and JobRuntime.instance().get("name") == "mine"
    assert application() == 3 and HydraConfig.get().job.name == "mine"


def test_another_application_can_begin_after_a_config_was_composed():
    GlobalHydra.instance().clear()
    compose_config([])
    assert not GlobalHydra.instance().is_initialized()
