"""The typed settings: what is refused and in which words, what an old config lacks, and what a check hands on."""

import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest
import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wdlab import build, session, settings
from wdlab.errors import ConfigError, explain
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import CONFIGS, PROJECT, compose_config, run_name
from wdlab.validation import check_and_build, check_config, error_in_code

COUNT = "a whole number between 1 and 1000000000000"
REFUSED = {
    "train.steps=ten": f"train.steps=ten: must be {COUNT}",
    "train.steps=1e3": f"train.steps=1000.0: must be {COUNT}",
    "train.steps='10'": f"train.steps=10: must be {COUNT}",
    "train.steps=true": f"train.steps=True: must be {COUNT}",
    "train.steps=null": f"train.steps=None: must be {COUNT}",
    "train.steps=???": "train.steps: is missing",
    "~train.steps": f"train.steps: cannot be deleted; must be {COUNT}",
    "train.steps=${oc.env:HOME}": f"train.steps=somewhere: must be {COUNT}",
    "train.clip_norm=true": "train.clip_norm=True: must be null or a number > 0",
    "train.clip_norm=nan": "train.clip_norm=nan: must be null or a number > 0",
    "train={step:3}": "train.step: unknown key; did you mean steps? allowed: steps, batch_size",
    "+train.new=1": "train.new: unknown key; allowed: steps, batch_size, log_every, eval_every, clip_norm",
    "+new=1": "new: unknown key; allowed: dataset, model",
    "train=null": "train=None: must be a group of keys",
    "~runtime": "runtime.device: is missing",
    "runtime.compile=1": "runtime.compile=1: must be true or false",
    "runtime.device=3": "runtime.device=3: must be one of auto, cpu, cuda",
    "runtime.checkpoint_seconds=soon": "runtime.checkpoint_seconds=soon: must be a number >= 0",
    "runtime.checkpoint_seconds=-0.5": "runtime.checkpoint_seconds=-0.5: must be a number >= 0",
    "logger.mode=sometimes": "logger.mode=sometimes: must be one of auto, online, offline, disabled",
    "paths.data=3": "paths.data=3: must be a folder",
    "fail_fast=1": "fail_fast=1: must be true or false",
}


@pytest.mark.parametrize("override", REFUSED)
def test_a_setting_is_refused_in_one_line(monkeypatch, override):
    monkeypatch.setenv("HOME", "somewhere")
    with pytest.raises((ConfigError, HydraException)) as refused:
        check_config(compose_config([override]))
    assert explain(refused.value).startswith(REFUSED[override])


@pytest.mark.parametrize("kind", [settings.TrainSettings, settings.RuntimeSettings, settings.LoggerSettings])
def test_omegaconf_refuses_what_it_would_convert(kind):
    schema = OmegaConf.structured(kind)
    for setting in fields(kind):
        for value in (1, 1.5, "1", True):
            if type(value) in setting.type.__args__:
                continue
            with pytest.raises(OmegaConfBaseException):
                schema[setting.name] = value


@pytest.mark.parametrize("part", ["", "train", "paths", "runtime", "logger"])
def test_the_schema_has_the_keys_of_the_files(part):
    """A key that stands on one side only would be refused, or would never be given."""
    file = {"": "train", "train": "train", "paths": "train"}.get(part, f"{part}/auto")
    written = OmegaConf.load(CONFIGS / f"{file}.yaml")
    if not part:
        names = [s.name for s in fields(settings.Settings)]
        assert names == [key for key in written if key not in ("defaults", "hydra")] + ["runtime", "logger"]
        return
    kind = next(s.type for s in fields(settings.Settings) if s.name == part)
    assert is_dataclass(kind) and [s.name for s in fields(kind)] == list(written[part] if file == "train" else written)


def test_values_stay_as_they_were_given():
    config = compose_config(["train.clip_norm=2", "runtime.checkpoint_seconds=1"])
    assert type(config.train.clip_norm) is int and type(config.runtime.checkpoint_seconds) is int
    assert run_name(config) == run_name(compose_config(["train.clip_norm=2.0"]))
    assert settings.read(config).train.clip_norm == 2
    plain = OmegaConf.to_container(config, resolve=True)
    assert type(plain["train"]) is dict and settings.read(OmegaConf.create(plain)) == settings.read(config)


def test_an_old_config_may_lack_what_is_null_today(compose):
    old = OmegaConf.create(OmegaConf.to_container(compose(), resolve=True))
    del old["train"]["average_decay"], old["runtime"]["threads"]
    read = settings.read(old)
    assert read.train.average_decay is None and read.runtime == settings.read_runtime(old)
    old["train"]["steps"] = 1.5
    with pytest.raises(ConfigError, match=r"train\.steps=1\.5: must be a whole number"):
        settings.read(old)
    del old["train"]["steps"]
    with pytest.raises(ConfigError, match=r"train\.steps: is missing"):
        settings.read(old)
    old["train"]["steps"] = b"10"
    with pytest.raises(ConfigError, match=r"train\.steps=b'10': must be a whole number"):
        settings.read(old)


def test_the_settings_do_without_torch():
    code = "import sys, wdlab.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0


# -- what a check hands on


def test_a_run_builds_its_parts_once_and_trains_what_was_checked(compose, monkeypatch):
    config, made = compose(), []
    build_one = build.build_parts
    for module in ("wdlab.build", "wdlab.validation"):
        monkeypatch.setattr(f"{module}.build_parts", lambda config: made.append(build_one(config)) or made[-1])
    before = build_one(config).model.state_dict()
    assert session.run(config) == "done"
    (built,) = made
    trained = torch.load(RunDirectory.of(config).checkpoint, weights_only=True)["model"]
    assert all(torch.equal(trained[key], value) for key, value in built.model.state_dict().items())
    assert not all(torch.equal(trained[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    "choice",
    [
        "model=mlp",
        "dataset=tinyshakespeare dataset.classes=8 dataset.shape=[16] dataset.val_size=100 model=gpt model.dropout=0.1",
        "dataset=cifar10 dataset.val_size=10 model=resnet8 train.batch_size=12",
    ],
)
def test_a_checked_network_and_the_random_state_are_those_of_a_new_one(compose, tiny_data, choice):
    config = compose(*choice.split(), f"paths.data={tiny_data}")
    new = build.build_experiment(config)
    state = torch.get_rng_state()
    built, fault = check_and_build(config)
    assert fault is None
    torch.rand(3)
    checked = build.build_experiment(config, built=built)
    assert checked.model is built.model and torch.equal(torch.get_rng_state(), state)
    states = new.model.state_dict(), checked.model.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert error_in_code(config) is None


def test_the_checked_network_does_not_keep_what_its_forward_keeps(compose):
    own = ("model._target_=tests.own_networks.Keeps", "model.name=Keeps", "~model.depth")
    assert not hasattr(check_config(compose(*own)).model, "hidden")
