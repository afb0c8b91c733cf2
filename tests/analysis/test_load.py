"""Run directories become one tidy table."""

import pytest

from wdlab import runs, train
from wdlab.analysis import load
from wdlab.errors import WdlabError


def test_one_row_per_run_and_log_point_with_the_settings_that_vary(compose, tmp_path):
    for strength in (1e-3, 1e-2):
        for seed in (0, 1):
            train.run(compose("regularizer=l2", f"regularizer.strength={strength}", f"seed={seed}"))
    table = load(tmp_path / "runs")
    assert list(table.columns[:8]) == [
        *("run", "dataset", "model", "optimizer", "regularizer", "seed", "regularizer.strength", "step")
    ]
    assert len(table) == 4 * 3 and table["run"].nunique() == 4
    assert set(table["regularizer.strength"]) == {1e-3, 1e-2} and set(table["seed"]) == {0, 1}
    assert "optimizer.lr" not in table and set(table["optimizer"]) == {"sgd"}
    assert table["train/loss"].notna().all() and table["gradient/loss_norm"].isna().sum() == 4


def test_only_the_named_runs_are_loaded_and_they_must_have_records(compose, tmp_path):
    config = compose("seed=3")
    train.run(config)
    train.run(compose("seed=4"))
    assert set(load(tmp_path / "runs", [runs.identity(config)])["seed"]) == {3}
    with pytest.raises(WdlabError, match="nobody: has no records"):
        load(tmp_path / "runs", ["nobody"])


def test_a_line_that_is_being_written_is_left_out(compose, tmp_path):
    config = compose()
    train.run(config)
    directory = runs.RunDirectory.of(config)
    with directory.metrics.open("a") as file:
        file.write('{"step": 30, "train/lo')
    assert list(load(tmp_path / "runs")["step"]) == [0, 10, 20]


def test_no_runs_make_an_empty_table(tmp_path):
    assert load(tmp_path).empty


def test_strengths_over_time_are_told_apart(compose, tmp_path):
    for over_time in ("constant", "early", "late"):
        train.run(compose("regularizer=l2", f"regularizer/over_time={over_time}"))
    table = load(tmp_path / "runs")
    assert set(table["regularizer.over_time"]) == {"constant", "early", "late"}
