"""A run's identity, lock and files."""

import json

import pytest
import yaml
from filelock import Timeout

from wdlab.records.directory import RunDirectory
from wdlab.records.identity import compose_config, run_name


def name(*overrides: str) -> str:
    return run_name(compose_config(overrides))


def test_the_name_starts_with_the_chosen_configs():
    assert name("optimizer=adam", "regularizer=l2").startswith("digits-mlp-adam-l2-")


@pytest.mark.parametrize(
    "override",
    [
        *("paths.runs=elsewhere", "paths.data=elsewhere", "logger=disabled", "runtime=cpu", "runtime.threads=1"),
        *("runtime.checkpoint_seconds=1", "optimizer.lr=1e-1", "hydra.verbose=true"),
    ],
)
def test_what_cannot_change_the_numbers_does_not_change_the_name(override):
    assert name(override) == name()


@pytest.mark.parametrize(
    "override",
    [
        *("seed=1", "optimizer.lr=0.2", "regularizer=l2", "model.width=65", "train.steps=999", "dataset.split_seed=1"),
        *("lr_schedule=cosine", "runtime.precision=bf16", "train.log_every=7"),
    ],
)
def test_what_changes_the_numbers_changes_the_name(override):
    assert name(override) != name()


def test_equal_numbers_and_absent_keys_make_equal_names():
    assert name("regularizer.strength=0") == name("regularizer.strength=0.0") == name("regularizer=none")
    assert name("+dataset.later_option=null") == name()


def test_moving_a_class_renames_no_run():
    config = compose_config(["regularizer=l2", "regularizer/over_time=early", "lr_schedule=cosine"])
    before = run_name(config)
    for node in (config[key] for key in ("model", "optimizer", "regularizer", "lr_schedule")):
        node["_target_"] = node["_target_"].replace(".", ".moved.", 1)
    config["regularizer"]["over_time"]["_target_"] = "elsewhere.Early"
    assert run_name(config) == before


def test_the_identity_is_stable():
    """Renaming finished runs would retrain them: a change here is a decision, not an accident."""
    assert name("dataset=digits", "model=mlp") == "digits-mlp-sgd-none-cc291f5f0c5b"


def test_the_lock_keeps_a_second_owner_out_and_is_free_afterwards(tmp_path):
    directory = RunDirectory(tmp_path, "a-run")
    directory.create()
    with directory.lock(), pytest.raises(Timeout), RunDirectory(tmp_path, "a-run").lock():
        pass
    with directory.lock():
        pass


def test_a_directory_that_is_not_there_is_new_and_stays_away(tmp_path):
    directory = RunDirectory(tmp_path, "a-run")
    assert directory.status == "new" and not directory.finished and not directory.path.exists()


def test_status_files_are_whole_or_absent(tmp_path):
    directory = RunDirectory(tmp_path, "a-run")
    directory.create()
    directory.write_status("running", step=3)
    assert directory.read("status.json")["step"] == 3 and directory.status == "running"
    (directory.path / "status.json").write_text('{"status": "do')
    assert directory.status == "new"


def test_provenance_adds_a_session_each_time(tmp_path):
    directory = RunDirectory(tmp_path, "a-run")
    directory.create()
    for threads in (1, 2):
        same = directory.write_provenance("checksum", threads=threads, precision="fp32")
        assert same == (threads == 1)
    found = json.loads((directory.path / "provenance.json").read_text())
    assert [s["threads"] for s in found["sessions"]] == [1, 2] and found["data_checksum"] == "checksum"
    assert {"python", "torch", "numpy"} <= found["sessions"][0]["versions"].keys()


def test_a_config_is_written_as_by_yaml_s_own_dumper(tmp_path):
    odd = {"text": "it's: # ünïcode\n\ttab", "long": "word " * 60, "number": "1e-3", "yes": "yes", "path": "/a b/c"}
    nested = {"betas": [0.9, 0.999], "on": True, "none": None, "empty": []}
    config = odd | {"small": 1e-05, "large": 1e30, "infinite": float("inf"), "nested": nested}
    run = RunDirectory(tmp_path, "run")
    run.create()
    run.write_config(config)
    assert run.config.read_text() == yaml.safe_dump(config, sort_keys=False)
    run.parsed_config.unlink()
    assert run.read_config() == config
