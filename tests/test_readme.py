"""The README's Python examples run as they stand, one after the other, as a reader would paste them."""

import re

import pytest

from wdlab import runs

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


def test_the_combinations_in_the_readme_compose_and_build():
    from wdlab import train

    text = (runs.PROJECT / "README.md").read_text()
    lines = re.findall(r"^\.venv/bin/python -m wdlab\.train (?!-m)((?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        train.build(runs.compose(line.replace("\\\n", " ").split()))
