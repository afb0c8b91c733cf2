"""Some panels of a figure made anew, next to those in its earlier files; the runs are too short to mean anything."""

import copy
import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from scripts import reproduce
from wdlab.analysis import compute, declaration, figures, panels, selection, tables
from wdlab.records.identity import PROJECT

SHORT = ["train.steps=20", "train.log_every=10", "train.eval_every=10", "model.width=8"]


@pytest.fixture
def short(command, monkeypatch):
    """fig3 or fig2 at quick scale with 20 steps a run, which are trained in this process."""

    def run(words: list[str]) -> int:
        return command(*words[words.index("wdlab.train") + 1 :]).returncode

    all_declared = {name: copy.deepcopy(declaration.read(name, "quick")) for name in ("fig2", "fig3")}
    for declared in all_declared.values():
        for panel in declared["at"]["panels"]:
            panel["shared"] += SHORT
    monkeypatch.setattr(reproduce, "run_to_its_end", run)
    monkeypatch.setattr(declaration, "read", lambda name, _: all_declared[name])
    all_declared["fig3"]["at"]["seeds"] = [0, 1]
    return all_declared


def made(name, results, anew=(), update=False) -> dict[str, bytes]:
    """Make a figure, and return the content of its files by name."""
    files = reproduce.reproduce(name, "quick", "local", "disabled", results, update, anew)
    return {path.name: path.read_bytes() for path in vars(files).values() if path.exists()}


def runs_in(results) -> list:
    return list((results / "runs").glob("*/summary.json"))


def test_a_panel_is_made_anew_and_joined_with_the_others(short, tmp_path, capfd):
    short["fig3"]["at"]["panels"][0]["shared"] += ["dataset.train_size=300"]  # that of the other panel is null
    before = made("fig3", tmp_path)
    shutil.rmtree(tmp_path / "runs")
    assert made("fig3", tmp_path, anew=("factorized",)) == before and len(runs_in(tmp_path)) == 4
    assert made("fig3", tmp_path, anew=("factorized",)) == before
    printed = " ".join(capfd.readouterr().out.split())
    assert "fig3 at quick scale, factorized: 4 runs, 0 to do" in printed and "equal in every number" in printed
    assert f"The rows of mlp are those of {tmp_path}/tables/quick/fig3.csv" in printed


def test_a_changed_panel_has_the_files_of_a_figure_that_is_made_as_a_whole(short, tmp_path, monkeypatch):
    """Batch size and momentum now differ between the panels, and the table has columns for them."""
    monkeypatch.setattr(compute, "spent", lambda runs: {"a CPU": {"hours": len(runs)}} if runs else {})
    made("fig3", tmp_path / "joined")
    short["fig3"]["at"]["panels"][0]["shared"] += ["train.batch_size=40", "optimizer.momentum=0.5"]
    joined = made("fig3", tmp_path / "joined", anew=("mlp",), update=True)
    whole = made("fig3", tmp_path / "whole")
    assert len(runs_in(tmp_path / "joined")) == 12
    found, expected = (
        pd.read_csv(tables.FigureFiles.of("fig3", "quick", tmp_path / folder).table) for folder in ("joined", "whole")
    )
    assert {"train.batch_size", "optimizer.momentum"} <= set(expected)
    pd.testing.assert_frame_equal(found, expected, check_like=True, check_exact=True)
    assert selection.setting_columns(found)[-2:] == ["optimizer.momentum", "train.batch_size"]
    of_joined, of_whole = (json.loads(content["fig3.json"]) for content in (joined, whole))
    assert of_joined.pop("compute") == {"a CPU": {"hours": 12}} and of_whole.pop("compute") == {"a CPU": {"hours": 8}}
    assert of_joined == of_whole and of_whole["runs"] == {"done": 8}
    assert made("fig3", tmp_path / "joined", anew=("mlp",), update=True) == joined  # the hours are counted once


def test_probes_and_shared_runs_are_joined_too(short, tmp_path):
    declared = short["fig2"]
    (panel,) = declared["at"]["panels"]
    panel["vary"] = [["regularizer=l2,pathprox", "regularizer.strength=1e-3,1e-2"]]
    declared["at"] |= {"seeds": [0, 1], "panels": [panel, panel | {"panel": "twin"}]}
    before = made("fig2", tmp_path)
    assert "fig2_measured.csv" in before and json.loads(before["fig2.json"])["runs"] == {"done": 8}
    shutil.rmtree(tmp_path / "runs")
    files = tables.FigureFiles.of("fig2", "quick", tmp_path)
    measured = pd.read_csv(files.measured)
    measured.loc[measured["panel"] == "twin", "parameters"] = 7.0
    measured.to_csv(files.measured, index=False)
    again = made("fig2", tmp_path, anew=("twin",))
    assert again["fig2.csv"] == before["fig2.csv"] and again["fig2.json"] == before["fig2.json"]
    found = pd.read_csv(tables.FigureFiles.of("fig2", "quick", tmp_path / "local").measured)
    assert len(found) == len(measured) and found["parameters"].max() <= 1
    assert list(found) == list(measured)


@pytest.mark.parametrize(("name", "anew"), [("study1", "few"), ("fig14", "gpt")])
def test_committed_tables_can_be_joined(name, anew):
    """With searches, and with formulas of a panel."""
    declared, files = declaration.read(name, "quick"), tables.FigureFiles.of(name, "quick", PROJECT / "results")
    kept = panels.keep(declared, [anew], files)
    new = kept.earlier[kept.earlier["panel"] == anew]
    joined = tables.shortened(declared, kept.joined(declared, kept.earlier, new, []))
    assert joined.to_csv(index=False, float_format="%.7g") == files.table.read_text()


@pytest.mark.parametrize(
    ("figure", "anew", "message"),
    [
        ("fig3", "mlp,vgg19", "PANELS=vgg19: must be one of mlp, factorized"),
        ("all", "mlp", "PANELS=mlp: needs the name of a figure, not all"),
        ("fig3", "mlp", "PANELS=mlp: {table}, which the other panels are taken from, does not exist"),
    ],
)
def test_panels_that_cannot_be_made_are_one_clear_line(figure, anew, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["r", figure, "--panels", anew, "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        reproduce.main()
    table = tables.FigureFiles.of("fig3", "quick", tmp_path).table
    assert ended.value.code == 2 and capsys.readouterr().err == f"error: {message.format(table=table)}\n"
    assert list(tmp_path.iterdir()) == []


def test_rows_of_other_declarations_are_refused_before_training(monkeypatch, capsys):
    """A learning rate of the other panel is not that of the committed runs; or a metric is not in the table."""
    monkeypatch.setattr(reproduce, "run_missing", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(sys, "argv", ["r", "fig3", "--panels", "mlp", "--results", str(PROJECT / "results")])
    table = tables.FigureFiles.of("fig3", "quick", PROJECT / "results").table
    usual = declaration.read("fig3", "quick")
    other, measured = copy.deepcopy(usual), usual | {"metrics": ["nothing"]}
    other["at"]["panels"][1]["shared"].append("optimizer.lr=0.5")
    reasons = {
        "has other runs than are declared for factorized; add it to PANELS": other,
        "has no column nothing, which is declared for the other panels": measured,
    }
    for reason, declared in reasons.items():
        monkeypatch.setattr(declaration, "read", lambda *_, declared=declared: declared)
        with pytest.raises(SystemExit) as ended:
            reproduce.main()
        assert ended.value.code == 2 and capsys.readouterr().err == f"error: PANELS=mlp: {table} {reason}\n"


def test_all_panels_named_are_the_whole_figure(short):
    assert panels.keep(short["fig3"], ["factorized", "mlp"], tables.FigureFiles.of("fig3", "quick", "nowhere")) is None


def test_hours_that_were_not_recorded_stay_so():
    declared, files = declaration.read("fig3", "quick"), tables.FigureFiles.of("fig3", "quick", PROJECT / "results")
    kept = panels.keep(declared, ["mlp"], files)
    assert "compute" not in kept.judged
    judged = kept.with_earlier_runs(figures.verdicts(declared, kept.earlier, []), [])
    assert "compute" not in judged and judged["devices"] == kept.judged["devices"]


def test_make_hands_the_panels_on():
    for panel, expected in (("PANELS=mlp", "--panels mlp"), ("PANELS=", "")):
        line = subprocess.run(
            ["make", "-n", "reproduce-fig3", panel], cwd=PROJECT, capture_output=True, text=True, check=True
        ).stdout
        assert ("--panels" in line) == bool(expected) and expected in line
