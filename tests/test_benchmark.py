"""``scripts/benchmark.py`` writes its tables; how fast things are is not tested."""

import importlib.util
import runpy
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from wdlab import runs

SCRIPT = runs.PROJECT / "scripts" / "benchmark.py"
QUICK = ("--repeats", "2", "--milliseconds", "0.1", "--width", "16", "--no-compiled", "--device", "cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, str(SCRIPT), "optimizers", *QUICK, "--out", str(folder / "tables")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "repeat 2 of 2" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["tables"]
    return folder / "tables"


def test_the_table_has_its_rows_and_columns_and_finite_numbers(made):
    table = pd.read_csv(made / "optimizers.csv", keep_default_na=False).set_index("case")
    assert list(table) == ["median_us", "ratio", "ratio_10", "ratio_90", "target", "met", "note"]
    numbers = table[["median_us", "ratio", "ratio_10", "ratio_90"]].to_numpy(float)
    assert np.isfinite(numbers).all() and (numbers > 0).all()
    assert table["ratio"].iloc[0] == 1 and table.index[0] == "torch AdamW fused"
    targets = {case: float(target) for case, target in table["target"].items() if target}
    assert targets == {"AdamS(fused=True)": 1.25, "PAdam(fused=True), p=0.8": 5, "PathProx, balance and prox": 2.7}
    assert all(
        table.loc[case, "met"] == ("yes" if table.loc[case, "ratio"] <= t else "no") for case, t in targets.items()
    )


@pytest.mark.skipif(importlib.util.find_spec("pytorch_optimizer") is None, reason="needs pytorch_optimizer")
def test_the_peers_are_the_methods_they_are_compared_with(made):
    table = pd.read_csv(made / "optimizers.csv", keep_default_na=False)
    peers = table[table["case"].str.startswith("pytorch_optimizer ")]
    assert len(peers) == 3 and peers["note"].str.startswith("the same method").all()


def test_the_page_shows_every_row_and_what_it_was_made_with(made):
    page = (made / "optimizers.md").read_text()
    table = pd.read_csv(made / "optimizers.csv")
    assert all(f"| {case} | " in page for case in table["case"])
    assert all(f"{part}" in page for part in ("git commit", "threads", "2 repeats", "torch 2", "released AdamS"))


def test_an_unknown_section_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "nonsense", "--out", str(tmp_path / "tables")])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "nonsense: must be one of optimizers" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
