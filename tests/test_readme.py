"""The README's Python examples run as they stand, one after the other, as a reader would paste them."""

import itertools
import re
import shlex

import pandas as pd
import pytest

from scripts import index
from wdlab.analysis import declaration
from wdlab.build import build
from wdlab.records.identity import CONFIGS, PROJECT, compose_config, run_name

SECTION = "In your own training loop"
WIDE = {"pnorm": "p = 0.8", "decoupled": "AdamW"}  # in the README's table of ResNets of width 32


def test_the_examples_run(capsys, monkeypatch, tmp_path):
    pytest.importorskip("stable_baselines3")
    monkeypatch.chdir(tmp_path)
    text = (PROJECT / "README.md").read_text()
    section = text.split(f"## {SECTION}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert "strength in force" in capsys.readouterr().out


def test_the_method_table_names_every_method_and_config():
    text = (PROJECT / "README.md").read_text()
    from wdlab import optimizers, regularizers

    for name in {*regularizers.__all__} - {"Regularizer", "OverTime"}:
        assert f"`{name}`" in text, name
    for name in ("AdamS", "SGDS", "PAdam"):
        assert hasattr(optimizers, name) and f"`{name}`" in text
    for folder in ("regularizer", "regularizer/over_time", "optimizer"):
        for path in {*(CONFIGS / folder).glob("*.yaml")} - {CONFIGS / "regularizer" / "none.yaml"}:
            assert re.search(rf"[`=]{path.stem}`", text), f"{folder}/{path.name}"


def test_the_index_of_figures_is_that_of_the_declarations_and_verdicts():
    readme = index.README.read_text()
    assert readme == index.written(readme), "make index"
    assert all(f"`make reproduce-{name}`" in readme for name in declaration.names())


def commands(sweeps: bool = False) -> list[list[str]]:
    """The overrides of every training command in the README, or of every sweep."""
    text = (PROJECT / "README.md").read_text()
    option = "-m " if sweeps else "(?!-m)"
    found = re.findall(rf"^\.venv/bin/python -m wdlab\.train {option}((?:.*\\\n)*.*)$", text, re.MULTILINE)
    return [shlex.split(line.replace("\\\n", " "), comments=True) for line in found]


def runs_of(overrides: list[str]) -> set[str]:
    """The runs of a sweep over comma-separated values."""
    choices = [
        [f"{key}={value}" for value in values.split(",")] for key, values in (o.split("=", 1) for o in overrides)
    ]
    return {run_name(compose_config(line)) for line in itertools.product(*choices)}


def test_the_commands_in_the_readme_compose_and_build():

    assert len(commands()) >= 6
    for overrides in commands():
        build(compose_config(overrides))


def test_the_runs_that_the_readme_names_are_those_of_its_commands():
    text = (PROJECT / "README.md").read_text()
    named = set(re.findall(r"results/runs/([\w-]+-[0-9a-f]{12})", text))
    assert len(named) == 2 and named <= {run_name(compose_config(overrides)) for overrides in commands()}
    swept = {run for overrides in commands(sweeps=True) if "model.width=32" in overrides for run in runs_of(overrides)}
    for example in (PROJECT / "results" / "examples").glob("*.csv"):
        assert set(pd.read_csv(example)["run"]) <= named | swept, example


def test_the_committed_resnets_of_width_32_are_those_of_the_readme():
    text = (PROJECT / "README.md").read_text()
    rows = pd.read_csv(PROJECT / "results" / "examples" / "resnet18_width32.csv")
    ends = rows.groupby("run").tail(1).groupby(["regularizer", "regularizer.strength"])
    for (name, strength), means in ends[["sparsity/weights", "val/accuracy", "test/accuracy"]].mean().iterrows():
        shown = " | ".join(f"{100 * value:.1f} %" for value in means)
        assert re.search(rf"\| {WIDE[name]}[^|]* \| {strength:g} \| {shown} \|", text), (name, strength, shown)


def test_the_committed_resnet_reaches_88_percent_in_30_epochs():
    curve = pd.read_csv(PROJECT / "results" / "examples" / "resnet18_cifar10.csv")
    assert curve["epoch"].max() <= 30 and curve["average/test/accuracy"].max() >= 0.88
