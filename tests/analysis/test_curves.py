"""Runs as curves: what is drawn, what is written, what is refused."""

import sys

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from wdlab import session
from wdlab.analysis import curves, load
from wdlab.errors import ConfigError
from wdlab.records.directory import RunDirectory


@pytest.fixture
def trained(compose, tmp_path):
    for strength in (1e-4, 1e-3):
        session.run(compose("regularizer=l2", f"regularizer.strength={strength}"))
    return sorted((tmp_path / "runs").iterdir())


def test_every_run_is_a_line_named_by_what_sets_it_apart(trained):
    table = load(trained[0].parent)
    figure = curves.draw(table, ["train/loss+test/loss", "norm/weight_l2"], note="a note")
    losses, norms = figure.axes
    assert [line.get_label() for line in norms.lines] == [
        f"strength {s}" for s in table["regularizer.strength"].unique()
    ]
    assert len(losses.lines) == 4 and losses.get_ylabel() == "loss (nats)"
    assert losses.get_xlabel() == "epoch" and list(norms.lines[0].get_ydata()) == list(table["norm/weight_l2"][:3])
    plt.close(figure)


def test_many_runs_look_different():
    strengths = range(8)
    settings = {"regularizer.strength": strengths, "optimizer.strength": 1}
    metrics = {"epoch": 0.0, "test/loss": 1.0, "train/loss": 2.0}
    table = pd.DataFrame({"run": [f"r{s}" for s in strengths], **settings, "step": 0, **metrics})
    figure = curves.draw(table, ["train/loss+test/loss"])
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 16
    both = curves.draw(table.assign(**{"optimizer.strength": strengths}), ["test/loss"])
    assert both.axes[0].lines[1].get_label() == "regularizer.strength 1, optimizer.strength 1"
    plt.close("all")


def test_the_command_writes_picture_and_table_with_where_they_come_from(trained, tmp_path, monkeypatch, capsys):
    out = tmp_path / "made" / "example"
    monkeypatch.setattr(sys, "argv", ["curves", *map(str, trained), "--out", str(out), "--metrics", "test/accuracy"])
    curves.main()
    assert out.with_suffix(".png").stat().st_size > 5000
    assert set(pd.read_csv(out.with_suffix(".csv"))["run"]) == {folder.name for folder in trained}
    assert "example.png" in capsys.readouterr().out
    session = RunDirectory(trained[0].parent, trained[0].name).read("provenance.json")["sessions"][0]
    assert session["device"] in curves.provenance(trained) and "fp32" in curves.provenance(trained)


def test_a_metric_that_was_not_recorded_is_refused(trained):
    with pytest.raises(ConfigError, match=r"--metrics test/acuracy: was not recorded; recorded are .*test/accuracy"):
        curves.draw(load(trained[0].parent), ["test/acuracy"])


def test_joined_metrics_have_their_own_units(trained):
    figure = curves.draw(load(trained[0].parent), ["train/loss+test/accuracy", "train/loss+test/loss"])
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "train/loss (nats)\ntest/accuracy (share of examples)",
        "loss (nats)",
    ]


def test_a_place_that_cannot_be_written_is_one_line(trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["curves", str(trained[0]), "--out", str(tmp_path / "file" / "picture")])
    with pytest.raises(SystemExit, match="2"):
        curves.main()
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
