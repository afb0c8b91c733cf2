"""Which rows and columns of its runs a figure's table keeps."""

import pandas as pd
import pytest

from wdlab.analysis import tables

STEPS = {"short": (0, 5, 10), "long": (0, 50, 90, 100)}


@pytest.fixture
def rows():
    each = [(panel, run, step) for panel, steps in STEPS.items() for run in "xy" for step in steps]
    return pd.DataFrame(
        [{"panel": p, "run": p + r, "seed": 0, "step": s, "loss": 1.0, "norm": 2.0} for p, r, s in each]
    )


def steps(kept: pd.DataFrame) -> dict[str, list[int]]:
    return kept.groupby("run")["step"].agg(list).to_dict()


def test_a_table_has_all_lines_or_those_that_are_declared(rows):
    assert tables.shortened({}, rows).equals(rows)
    assert steps(tables.shortened({"lines": "last"}, rows)) == {
        "shortx": [10],
        "shorty": [10],
        "longx": [100],
        "longy": [100],
    }
    late = steps(tables.shortened({"lines": {"after": 0.8}}, rows))
    assert late == {"shortx": [10], "shorty": [10], "longx": [90, 100], "longy": [90, 100]}


def test_a_table_has_all_settings_and_those_metrics_that_are_declared(rows):
    assert list(tables.shortened({"metrics": ["norm"]}, rows)) == ["panel", "run", "seed", "step", "norm"]
    with pytest.raises(KeyError, match="nothing"):
        tables.shortened({"metrics": ["nothing"]}, rows)


def test_a_panel_has_derived_columns_of_its_own():
    panels = [
        {"panel": name, "simulate": {"function": "pandas.DataFrame", "data": {"step": [1, 2], column: [3.0, None]}}}
        for name, column in (("images", "accuracy"), ("control", "reward"))
    ]
    panels[0]["derived"] = {"score": "accuracy.fillna(0.1) - 0.1"}
    panels[1]["derived"] = {"score": "reward.fillna(9) / 500"}
    rows = tables.run_table({"at": {"panels": panels}, "derived": {"double": "2 * step"}}, [])
    assert rows["score"].tolist() == pytest.approx([2.9, 0.0, 0.006, 0.018]) and rows["double"].tolist() == [2, 4] * 2
