"""The README's Python examples run as they stand, one after the other, as a reader would paste them."""

import re
import shlex

import pandas as pd
import pytest

from scripts import index
from wdlab import runs
from wdlab.analysis import figures

SECTION = "In your own training loop"


def test_the_examples_run(capsys, monkeypatch, tmp_path):
    pytest.importorskip("stable_baselines3")
    monkeypatch.chdir(tmp_path)
    text = (runs.PROJECT / "README.md").read_text()
    section = text.split(f"## {SECTION}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert "strength in force" in capsys.readouterr().out


def test_the_method_table_names_every_method_and_config():
    text = (runs.PROJECT / "README.md").read_text()
    from wdlab import optimizers, regularizers

    for name in {*regularizers.__all__} - {"Regularizer", "OverTime"}:
        assert f"`{name}`" in text, name
    for name in ("AdamS", "SGDS", "PAdam"):
        assert hasattr(optimizers, name) and f"`{name}`" in text
    for folder in ("regularizer", "regularizer/over_time", "optimizer"):
        for path in {*(runs.CONFIGS / folder).glob("*.yaml")} - {runs.CONFIGS / "regularizer" / "none.yaml"}:
            assert re.search(rf"[`=]{path.stem}`", text), f"{folder}/{path.name}"


def test_the_index_of_figures_is_that_of_the_declarations_and_verdicts():
    readme = index.README.read_text()
    assert readme == index.written(readme), "make index"
    assert all(f"`make reproduce-{name}`" in readme for name in figures.names())


def commands() -> list[list[str]]:
    """The overrides of every training command in the README."""
    text = (runs.PROJECT / "README.md").read_text()
    found = re.findall(r"^\.venv/bin/python -m wdlab\.train (?!-m)((?:.*\\\n)*.*)$", text, re.MULTILINE)
    return [shlex.split(line.replace("\\\n", " ")) for line in found]


def test_the_commands_in_the_readme_compose_and_build():
    from wdlab import train

    assert len(commands()) >= 6
    for overrides in commands():
        train.build(runs.compose(overrides))


def test_the_runs_that_the_readme_names_are_those_of_its_commands():
    text = (runs.PROJECT / "README.md").read_text()
    named = set(re.findall(r"results/runs/([\w-]+-[0-9a-f]{12})", text))
    assert len(named) == 2 and named <= {runs.identity(runs.compose(overrides)) for overrides in commands()}
    for example in (runs.PROJECT / "results" / "examples").glob("*.csv"):
        assert set(pd.read_csv(example)["run"]) <= named, example


def test_the_committed_resnet_reaches_88_percent_in_30_epochs():
    curve = pd.read_csv(runs.PROJECT / "results" / "examples" / "resnet18_cifar10.csv")
    assert curve["epoch"].max() <= 30 and curve["average/test/accuracy"].max() >= 0.88
