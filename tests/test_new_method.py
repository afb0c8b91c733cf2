"""A method from outside the repository, one Python file and one YAML file: it is trained, stacked, and drawn."""

import json

import matplotlib.pyplot as plt
import pytest

from wdlab.analysis import load
from wdlab.analysis.plots import pathprox

METHOD = '''
from wdlab.regularizers import Regularizer


class Lasso(Regularizer):
    """``w -= lr * s * sign(w)`` before the optimizer's step."""

    {flag}

    def before_step(self):
        for group in self.active_groups():
            for weight in group.params:
                weight.sub_(group.lr * group.strength * weight.sign())
'''
CONFIG = """
_target_: lasso_{flag}.Lasso.for_model
name: lasso
strength: 1e-3
scope: weights
"""
RUN = ("model.width=8", "train.steps=20", "train.log_every=5", "train.eval_every=5", "logger=disabled", "runtime=cpu")


@pytest.mark.parametrize("flag", ["stackable", "single"])
def test_one_file_and_one_yaml_are_enough(flag, tmp_path, command, monkeypatch):
    (tmp_path / f"lasso_{flag}.py").write_text(METHOD.format(flag="stackable = True" if flag == "stackable" else ""))
    (tmp_path / "configs" / "regularizer").mkdir(parents=True)
    (tmp_path / "configs" / "regularizer" / "lasso.yaml").write_text(CONFIG.format(flag=flag))
    monkeypatch.syspath_prepend(tmp_path)
    grid = ("--config-dir", "configs", "regularizer=l2,lasso", "regularizer.strength=1e-3,1e-1", "seed=0,1")
    stacked = command("-m", *grid, *RUN, "hydra/launcher=stacked", "paths.runs=stacked")
    assert stacked.returncode == 0, stacked.stderr
    reason = "Lasso acts on single runs"
    assert (reason in stacked.stdout + stacked.stderr) == (flag == "single")
    alone = command("-m", *grid, *RUN, "paths.runs=alone")
    assert alone.returncode == 0, alone.stderr
    for path in (tmp_path / "stacked").glob("*-lasso-*/provenance.json"):
        assert json.loads(path.read_text())["sessions"][-1]["stacked"] == (flag == "stackable")
    table, other = load(tmp_path / "stacked"), load(tmp_path / "alone")
    assert sorted(table["run"].unique()) == sorted(other["run"].unique()) and table["run"].nunique() == 8
    losses = [t.groupby("run")["train/loss"].last().sort_index() for t in (table, other)]
    assert losses[0].to_numpy() == pytest.approx(losses[1].to_numpy(), rel=1e-4)
    table["panel"] = "digits"
    strong = table[table["regularizer.strength"] == 1e-1]
    figure = pathprox.fig3(strong, [{"panel": "digits", "title": "digits"}])
    labels = figure.axes[0].get_legend_handles_labels()[1]
    plt.close(figure)
    assert any("lasso" in label for label in labels) and len(labels) == 2
