"""Runs in an environment: ordinary runs, whose optimizer steps have the method attached."""

import importlib.util
import json
import tempfile

import pytest
import torch

from wdlab import data, evaluate, session
from wdlab.build import build_experiment
from wdlab.errors import ConfigError
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.stacked.eligibility import why_not_stacked
from wdlab.validation import check_config

CARTPOLE = (
    *("dataset=cartpole", "optimizer=adam", "optimizer.lr=0.01", "dataset.episodes=3", "dataset.learning_starts=40"),
    *("train.steps=30", "train.log_every=10", "train.eval_every=15", "train.batch_size=16", "model.width=8"),
)
ROUTES = ("both", "first", "second", "separate", "decoupled")
needs_rl = pytest.mark.skipif(
    importlib.util.find_spec("stable_baselines3") is None, reason="needs the extra rl: stable-baselines3, gymnasium"
)


def trained(config):
    """The log lines and the checkpoint of a run."""
    assert session.run(config) == "done"
    directory = RunDirectory.of(config)
    return [json.loads(line) for line in directory.metrics.read_text().splitlines()], checkpoint.load(directory)


@needs_rl
def test_a_run_has_records_a_checkpoint_and_a_score_and_is_not_trained_twice(compose, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(temporary := tmp_path / "temporary"))
    temporary.mkdir()
    config = compose(*CARTPOLE, "regularizer=l2", "regularizer.route=separate")
    lines, state = trained(config)
    assert [line["step"] for line in lines] == [0, 10, 15, 20, 30]
    assert [line["environment_steps"] for line in lines] == [40 + 2 * line["step"] for line in lines]
    assert ["score/mean_return" in line for line in lines] == [True, False, True, False, True]
    assert all(8 <= line["score/mean_return"] <= 500 for line in lines if "score/mean_return" in line)
    assert lines[1]["gradient/loss_norm"] > 0 and lines[1]["strength"] == 1e-4 and lines[1]["train/td_loss"] > 0
    assert state["step"] == 30 and state["optimizer"]["state"][0]["step"] == 30
    directory = RunDirectory.of(config)
    written = directory.metrics.read_bytes()
    assert directory.read("summary.json")["score/mean_return"] == lines[-1]["score/mean_return"]
    assert session.run(config) == "done" and directory.metrics.read_bytes() == written
    assert not list(temporary.glob("SB3-*"))  # the library's logger makes one for each run


@needs_rl
def test_an_interrupted_run_begins_anew_and_ends_the_same(compose, monkeypatch):
    config, other = (compose(*CARTPOLE, "regularizer=l2", runs_in=folder) for folder in ("whole", "interrupted"))
    expected, state = trained(config)
    with monkeypatch.context() as patched:
        patched.setattr(session.stopping, "watch_stop_requests", _StopAtOnce)
        with pytest.raises(KeyboardInterrupt):
            session.run(other)
    assert RunDirectory.of(other).status == "interrupted" and checkpoint.load(RunDirectory.of(other)) is None
    lines, again = trained(other)
    assert lines == expected
    assert all(torch.equal(again["model"][name], value) for name, value in state["model"].items())


class _StopAtOnce:
    def __init__(self, *_):
        pass

    def __enter__(self):
        return lambda: True

    def __exit__(self, *_):
        return False


@needs_rl
def test_a_method_acts_on_the_steps_of_the_library(compose):
    """Strength 0 changes nothing. At lr s = 1 every weight is zero before each step of Adam.

    The step is at most lr times (1 - beta1) / sqrt(1 - beta2) = 3.16.
    """
    runs = {
        name: trained(compose(*CARTPOLE, f"regularizer={name}", *more))
        for name, more in {
            "none": (),
            "l2": ("regularizer.strength=0",),
            "decoupled": ("regularizer.strength=100",),
        }.items()
    }
    weights = {name: state["model"]["layers.1.weight"] for name, (_, state) in runs.items()}
    assert torch.equal(weights["none"], weights["l2"])
    assert weights["none"].abs().max() > 0.1 and weights["decoupled"].abs().max() <= 0.0317


@needs_rl
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_decays(route, compose):
    eps = "optimizer.eps=0.1"  # without it the route first explodes where a unit is dead
    config = compose(*CARTPOLE, "regularizer=l2", f"regularizer.route={route}", "regularizer.strength=3", eps)
    plain = compose(*CARTPOLE, "regularizer=none", eps)
    assert trained(config)[0][-1]["norm/weight_l2"] < trained(plain)[0][-1]["norm/weight_l2"]


@needs_rl
def test_acrobot_and_batch_norm_and_schedules(compose):
    more = ("model.norm=batch", "lr_schedule=cosine", "regularizer=l1", "regularizer/over_time=early")
    config = compose(*CARTPOLE, "dataset=acrobot", "train.clip_norm=10", *more, "regularizer.over_time.epochs=0.02")
    lines, _ = trained(config)
    assert [line["strength"] > 0 for line in lines] == [True, True, True, True, False]
    assert lines[-1]["lr"] < 0.001 and -500 <= lines[-1]["score/mean_return"] <= -60
    assert "scale_invariant/log_effective_lr" in lines[-1]


@needs_rl
def test_it_is_trained_alone_and_not_evaluated_on_splits(compose):
    config = compose(*CARTPOLE, "dataset.episodes=1")
    assert why_not_stacked(config, build_experiment(config)) == "dataset=cartpole is an environment"
    trained(config)
    with pytest.raises(ConfigError, match="is a run in an environment, which has no splits"):
        evaluate.evaluate(RunDirectory.of(config).path, [])


REFUSED = {
    "dataset.environment=CartPole-v99": "dataset.environment=CartPole-v99: gymnasium has none",
    "dataset.environment=MountainCarContinuous-v0": "dataset.environment=.*: must have discrete actions",
    "dataset.shape=[1,1,5]": r"dataset.shape=\[1, 1, 5\]: must be \[1, 1, 4\] for CartPole-v1",
    "dataset.classes=3": "dataset.classes=3: must be 2 for CartPole-v1",
    "train.label_smoothing=0.1": "train.label_smoothing=0.1: must be null in an environment",
    "train.batch_size=50": "train.batch_size=50: must be at most dataset.learning_starts=40",
    "dataset.gamma=2": "dataset.gamma=2: must be a number between 0 and 1",
    "+dataset.augment=null": "dataset.augment: unknown key",
}


@needs_rl
@pytest.mark.parametrize("override", REFUSED)
def test_what_it_cannot_use_is_refused_before_training(override, compose):
    with pytest.raises(ConfigError, match=REFUSED[override]):
        check_config(compose(*CARTPOLE, override))


def test_without_the_extra_one_line_says_what_to_install(compose, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    needs = r"^dataset=cartpole: needs stable-baselines3; in the checkout: .* -c requirements.lock -e '.\[dev,rl\]'$"
    with pytest.raises(ConfigError, match=needs):
        check_config(compose(*CARTPOLE))


def test_the_description_of_an_environment_is_no_data_set(compose):
    config = compose(*CARTPOLE)
    loaded = data.load(config["dataset"], "unused", torch.device("cpu"))
    assert isinstance(loaded, data.Environment) and len(loaded.checksum) == 64
    assert loaded.checksum == data.checksum(config["dataset"], "unused")
    other = data.checksum(compose(*CARTPOLE, "dataset=acrobot")["dataset"], "unused")
    assert loaded.checksum != other
