"""``compose_config`` lets Hydra compose each choice of files once; what it returns and raises is what Hydra does."""

import shutil

import pytest
from omegaconf import OmegaConf

from wdlab import interpolations
from wdlab.errors import explain
from wdlab.records import identity
from wdlab.records.identity import CONFIGS, compose_config

LINES = (
    "",
    "regularizer=pathprox regularizer.strength=1e-3 seed=3",
    "regularizer=pathprox regularizer.strength=1e-2 seed=4 train.steps=5 paths.runs=elsewhere",
    "regularizer=l1 regularizer/over_time=early regularizer.over_time.epochs=3",
    "+optimizer.dampening=0.1 optimizer.lr=2",
    "~lr_schedule.name lr_schedule=cosine",
    "train.clip_norm=${seed} optimizer=adam optimizer.betas=[0.8,0.9]",
    "seed=${oc.env:WDLAB_SEED} runtime=gpu logger=offline",
    "dataset.augment={crop:4,flip:true} dataset.augment.crop=2 model={width:3}",
    "seed=1 seed=2 optimizer=sgd optimizer=adam",
    "+experiment=mnist_pathprox seed=3 regularizer=l2",
)
BAD = ("seed=0,1", "x=1", "model.wdth=8", "seed=[", "model=no", "train.steps=ten", "~optimizer.no")


def by_hydra(overrides: list[str]):
    config = identity._composed_by_hydra(overrides)
    interpolations.read_environment(config)
    return config


@pytest.mark.parametrize("line", LINES)
def test_a_config_is_the_one_that_hydra_composes(line, monkeypatch):
    monkeypatch.setenv("WDLAB_SEED", "7")
    expected = by_hydra(line.split())
    for _ in range(2):
        config = compose_config(line.split())
        assert OmegaConf.to_yaml(config) == OmegaConf.to_yaml(expected) and config == expected
        assert OmegaConf.is_struct(config) and OmegaConf.get_type(config) is OmegaConf.get_type(expected)
        config["seed"] = 99  # a copy: the next one has its own


@pytest.mark.parametrize("line", BAD)
def test_what_hydra_refuses_is_refused_in_its_words(line):
    errors = []
    for compose in (by_hydra, compose_config):
        with pytest.raises(Exception) as refused:
            compose(line.split())
        errors.append((refused.type, explain(refused.value)))
    assert errors[0] == errors[1]


def test_a_changed_or_added_file_is_read(tmp_path, monkeypatch):
    configs = shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(identity, "CONFIGS", configs)
    assert "width_of_mine" not in compose_config(["model=mlp"])["model"]
    text = (configs / "model" / "mlp.yaml").read_text()
    (configs / "model" / "mlp.yaml").write_text(f"{text}\nwidth_of_mine: 1\n")
    (configs / "model" / "mine.yaml").write_text("name: mine\n")
    assert compose_config(["model=mlp"])["model"]["width_of_mine"] == 1
    assert compose_config(["model=mine"])["model"]["name"] == "mine"
