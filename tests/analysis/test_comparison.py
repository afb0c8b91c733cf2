"""Two results of a figure agree or differ, by as much as was put into them."""

import copy
import json

import numpy as np
import pandas as pd
import pytest

from wdlab.analysis import comparison
from wdlab.analysis.tables import FigureFiles

TABLE = pd.DataFrame(
    {
        "panel": "mlp",
        "run": ["a", "a", "b", "b"],
        "regularizer": ["l2", "l2", "pathprox", "pathprox"],
        "seed": 0,
        "step": [0, 100, 0, 100],
        "train/loss": [2.0, 0.5, 2.0, 0.25],
        "latency": [1.0, 1.0, 1.0, 1.0],
    }
)
CLAIM = {
    "panel": "mlp",
    "id": "lower_loss",
    "verdict": "reproduced",
    "a_mean": 0.25,
    "b_mean": 0.5,
    "smallest_difference": 0.1,
}


def changed(row, column, value):
    table = TABLE.copy()
    table.loc[row, column] = value
    return table


@pytest.fixture
def write(tmp_path):
    """Write a figure's table and one claim into a folder."""

    def _write(folder, table=TABLE, measured=None, **claim):
        files = FigureFiles.of("fig9", "quick", tmp_path / folder)
        for path in (files.table, files.verdicts):
            path.parent.mkdir(parents=True)
        table.to_csv(files.table, index=False)
        if measured is not None:
            measured.to_csv(files.measured, index=False)
        files.verdicts.write_text(json.dumps({"claims": [CLAIM | claim]}))
        return files

    return _write


def test_one_changed_number_is_found_with_its_size_and_place():
    found = comparison.of_tables(changed(1, "train/loss", 0.5 * (1 + 1e-3)), TABLE)
    assert found.size == pytest.approx(1e-3 / (1 + 1e-3), rel=1e-9)
    assert found.where == "train/loss of a at step 100" and str(found) == "0.1 % (train/loss of a at step 100)"
    assert comparison.of_tables(TABLE, TABLE).size == 0


def test_the_order_of_rows_and_times_do_not_count():
    other = changed(0, "latency", 7.0).iloc[::-1]
    assert comparison.of_tables(other, TABLE).size == 0


@pytest.mark.parametrize(("column", "value"), [("step", 50), ("run", "c"), ("regularizer", "l1"), ("seed", 1)])
def test_other_rows_cannot_be_compared(column, value):
    assert comparison.of_tables(changed(1, column, value), TABLE) is None
    assert comparison.of_tables(TABLE.iloc[:3], TABLE) is None
    assert comparison.of_tables(TABLE.rename(columns={"train/loss": "loss"}), TABLE) is None


def test_a_row_of_a_simulation_is_named_by_its_panel():
    table = TABLE.assign(run=np.nan)
    other = table.copy()
    other.loc[3, "train/loss"] = 0.5
    assert comparison.of_tables(other, table) == (0.5, "train/loss of mlp at step 100")


def test_relative_differences_of_zeros_and_missing_numbers():
    nan, inf = np.nan, np.inf
    x, y = np.array([0.0, nan, nan, 0.0, 1.0, -1.0, inf]), np.array([0.0, nan, 1.0, 2.0, 1.1, 1.0, inf])
    assert comparison.relative(x, y) == pytest.approx([0, 0, inf, 1, 0.1 / 1.1, 2, 0])
    assert comparison.relative(0.001, 0.002, least=0.1) == pytest.approx(0.01)


@pytest.mark.parametrize("mean", ["a_mean", "b_mean"])
def test_means_are_compared_by_what_counts(mean):
    place = ("mlp", "lower_loss")
    for value, expected in ((CLAIM[mean] * 2, 0.5), (None, np.inf), (CLAIM[mean], 0)):
        assert comparison.of_claims({place: CLAIM | {mean: value}}, {place: CLAIM}).size == pytest.approx(expected)
    near_zero = [CLAIM | {mean: value} for value in (0.0, 1e-3)]
    found = comparison.of_claims({place: near_zero[0]}, {place: near_zero[1]})
    assert found.size == pytest.approx(0.01) and found.where == f"{mean} of lower_loss on mlp"


def test_equal_results_agree_in_every_number(write):
    assert comparison.compare(write("ours"), write("theirs")) == (True, "equal in every number")


@pytest.mark.parametrize(("factor", "agree"), [(1.04, True), (1.06, False)])
def test_results_agree_if_the_means_do_whatever_a_single_number_does(write, factor, agree):
    found = comparison.compare(
        write("ours", changed(3, "train/loss", 0.5), b_mean=0.5 * factor), write("theirs", b_mean=0.5)
    )
    assert found.agree is agree
    size = f"{100 * (1 - 1 / factor):.2g} %"
    assert f"by up to {size} (b_mean of lower_loss on mlp)" in found.text
    assert found.text.endswith("by up to 50 % (train/loss of b at step 100)")


def test_another_verdict_is_named(write):
    found = comparison.compare(write("ours", verdict="inconclusive"), write("theirs"))
    assert not found.agree and found.text.startswith("lower_loss on mlp is inconclusive, not reproduced.")


def test_other_claims_or_runs_do_not_agree(write):
    theirs = write("theirs")
    for number, other in enumerate((write("claim", id="another"), write("run", changed(1, "run", "c")))):
        assert comparison.compare(other, theirs) == (False, "they have other runs, columns or claims"), number


def test_the_table_of_probes_counts_too(write):
    measured = copy.deepcopy(TABLE).rename(columns={"train/loss": "zero"})
    other = measured.copy()
    other.loc[0, "zero"] = 1.0
    found = comparison.compare(write("ours", measured=other), write("theirs", measured=measured))
    assert found.agree and "50 % (zero of a at step 0)" in found.text
