"""The runs of a search: the trials of each method, then the judged runs of the trial that is chosen."""

import math

import pandas as pd
import pytest
from omegaconf import OmegaConf

from wdlab.analysis import declaration, tables
from wdlab.errors import ConfigError

LR = "optimizer.lr=tag(log,interval(1e-3,1))"
METHODS = {
    "none": ["regularizer=none", LR],
    "L2": ["regularizer=l2", LR, "regularizer.strength=tag(log,interval(1e-5,1e-1))"],
    "L1": ["regularizer=l1", LR, "regularizer.strength=tag(log,interval(1e-6,1e-2))"],
}


def declared(**changes) -> dict:
    search = {
        "methods": METHODS,
        "trials": 4,
        "seeds": [100, 101],
        "choose": {"highest": "val/accuracy"},
        "judged": ["train.full_gradient_every=500", "train.log_every=500"],
        **changes,
    }
    panel = {"panel": "digits", "shared": ["dataset=digits", "train.log_every=1000"], "search": search}
    return {"at": {"seeds": [0, 1, 2], "panels": [panel]}}


def ends(values: dict, column: str = "val/accuracy"):
    """Pretend that the trials of a method have these ends; the runs of other methods are not finished."""
    by_name = {}
    for run in declaration.figure_runs(declared(), "anywhere"):
        of_method = values.get(run.searched["method"])
        by_name[run.directory.name] = of_method[run.searched["trial"]] if of_method else None

    def end_of(directory, asked):
        assert asked == column
        return by_name[directory.name]

    return end_of


def of(runs, method, stage):
    return [run for run in runs if (run.searched["method"], run.searched["stage"]) == (method, stage)]


def value(run, key):
    return {word.partition("=")[0]: word.partition("=")[2] for word in run.overrides}[key]


def test_each_method_has_as_many_trials_at_the_same_points():
    runs = declaration.figure_runs(declared(), "anywhere")
    assert len(runs) == 3 * 4 * 2 and {run.searched["stage"] for run in runs} == {"trial"}
    assert len({run.directory.name for run in runs}) == len(runs)
    l2, l1 = of(runs, "L2", "trial"), of(runs, "L1", "trial")
    assert [value(run, "optimizer.lr") for run in l2] == [value(run, "optimizer.lr") for run in l1]
    ten_times = [float(value(run, "regularizer.strength")) * 10 for run in l1]
    assert [float(value(run, "regularizer.strength")) for run in l2] == pytest.approx(ten_times, rel=1e-4)
    assert {value(run, "seed") for run in runs} == {"100", "101"}
    further = {run.directory.name for run in declaration.figure_runs(declared(trials=6), "anywhere")}
    assert {run.directory.name for run in runs} < further


@pytest.mark.parametrize(
    ("order", "scores", "best"),
    [
        ("highest", [0.1, 0.9, 0.3, 0.2], 1),
        ("lowest", [0.1, 0.9, 0.3, 0.05], 3),
        ("highest", [math.nan, 0.2, 0.3, 0.3], 2),
        ("lowest", [math.nan, 0.9, 0.8, math.nan], 2),
        ("highest", [0.3, 0.3 + 1e-9, 0.1, 0.1], 0),
        ("lowest", [math.nan] * 4, 0),
    ],
)
def test_the_best_trial_is_judged_with_fresh_seeds_once_all_trials_of_its_method_have_finished(order, scores, best):
    """The first of equals; a run that diverged is the worst."""
    runs = declaration.figure_runs(declared(choose={order: "val/accuracy"}), "anywhere", ends({"L2": scores}))
    judged = of(runs, "L2", "judged")
    assert [value(run, "seed") for run in judged] == ["0", "1", "2"]
    assert {run.searched["stage"] for run in runs if run.searched["method"] != "L2"} == {"trial"}
    trial = of(runs, "L2", "trial")[best]
    for key in ("optimizer.lr", "regularizer.strength"):
        assert {value(run, key) for run in judged} == {value(trial, key)}
    assert {run.searched["trial"] for run in judged} == {best}
    assert {value(run, "train.full_gradient_every") for run in judged} == {"500"}
    assert {value(run, "train.log_every") for run in judged} == {"500"}  # the last of two counts


def test_a_method_is_not_judged_before_its_last_trial():
    runs = declaration.figure_runs(declared(), "anywhere", ends({"L2": [0.1, 0.9, 0.3, None], "L1": [0.1] * 4}))
    assert not of(runs, "L2", "judged") and len(of(runs, "L1", "judged")) == 3


def test_the_end_of_a_trial_is_read_from_its_directory(tmp_path):
    for run in declaration.figure_runs(declared(), tmp_path):
        run.directory.create()
        number = run.searched["trial"]
        run.directory.write_status("diverged" if number == 3 else "done")
        run.directory.write("summary.json", {"val/accuracy": 0.5 + number / 10})
    runs = declaration.figure_runs(declared(), tmp_path)
    assert {run.searched["trial"] for run in of(runs, "L1", "judged")} == {2}
    with pytest.raises(ConfigError, match="choose: val/loss was not measured in"):
        declaration.figure_runs(declared(choose={"lowest": "val/loss"}), tmp_path)


def test_the_choice_follows_from_the_table(tmp_path):
    """A table with the judged runs of another trial does not hold the declared runs."""
    scores = {method: [0.7, 0.5, math.nan, 0.7000001] for method in METHODS}
    runs = declaration.figure_runs(declared(), "anywhere", ends(scores))
    rows = pd.DataFrame(
        [
            {"panel": run.panel, **run.searched, "run": run.directory.name, "step": 10, "train/loss": 0.1}
            | {"val/accuracy": scores[run.searched["method"]][run.searched["trial"]]}
            for run in runs
        ]
    )
    rows.loc[rows["val/accuracy"].isna(), "train/loss"] = math.nan
    assert len(rows) == 3 * (4 * 2 + 3) and set(rows.loc[rows["stage"] == "judged", "trial"]) == {3}
    files = tables.FigureFiles.of("study1", "quick", tmp_path)
    files.table.parent.mkdir(parents=True)
    rows.to_csv(files.table, index=False, float_format="%.7g")
    assert tables.holds_the_declared_runs(declared(), files)
    rows["val/accuracy"] = -rows["val/accuracy"]
    rows.to_csv(files.table, index=False)
    assert not tables.holds_the_declared_runs(declared(), files)
    rows[rows["stage"] == "trial"].to_csv(files.table, index=False)
    assert not tables.holds_the_declared_runs(declared(), files)


@pytest.mark.parametrize("key", ["panels", "changed"])
def test_a_claim_about_a_panel_that_no_scale_has_is_refused(key, tmp_path, monkeypatch):
    content = OmegaConf.load(declaration.CONFIGS / "figure" / "fig3.yaml")
    content["claims"][0][key] = {"mlp": "", "nowhere": ""} if key == "changed" else ["mlp", "nowhere"]
    (tmp_path / "figure").mkdir()
    OmegaConf.save(content, tmp_path / "figure" / "fig3.yaml")
    monkeypatch.setattr(declaration, "CONFIGS", tmp_path)
    with pytest.raises(ConfigError, match=r"figure fig3: claim .* names panel nowhere, which no scale has"):
        declaration.read("fig3", "quick")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choose": {"best": "val/loss"}}, "panel digits: search: choose=.*must be highest or lowest"),
        ({"seeds": [2, 100]}, "panel digits: search: seed 2 is of the trials and of the judged runs"),
        ({"trials": 0}, "must be a whole number from 1"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        declaration.figure_runs(declared(**changes), "anywhere")
