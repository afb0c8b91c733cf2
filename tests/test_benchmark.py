"""``scripts/benchmark.py`` writes its tables; how fast things are is not tested."""

import importlib.util
import os
import runpy
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from wdlab.records.identity import PROJECT

SCRIPT = PROJECT / "scripts" / "benchmark.py"
QUICK = ("--repeats", "2", "--milliseconds", "0.1", "--width", "16", "--no-compiled", "--device", "cpu", "--quick")
THEIRS, LOADER = "torchvision + DataLoader, 2 workers", "DataLoader of normalized tensors"
TARGETS = {  # of the sections of several parts: part, case, and the quantity that must be at least or at most so much
    "inputs": [
        ("CIFAR-10, zero padding, crop, flip", "wdlab", "speed-up", 20),
        ("MNIST", "wdlab", "speed-up", 70),
    ],
    "training": [
        ("MLP, width 16", "wdlab, fp32", "speed-up", 1.5),
        ("MLP, width 16", "wdlab, bf16", "speed-up", 2.2),
        ("ResNet-8, width 2", "wdlab, bf16, channels_last", "speed-up", 2.2),
        ("ResNet-8, width 8", "wdlab, bf16, channels_last", "speed-up", 2.9),
    ],
    "loop": [("The loop", "wdlab, logging every 10 steps", "ratio", 1.03)],
    "stacked": [
        ("Training", "stacked", "speed-up", 12),
        ("Wide networks", "stacked", "speed-up", 0.98),
    ],
    "ledger": [("40 runs", "analysis.load, for the first time", "ratio", 1)],
    "growth": [("Time per run", "4 runs", "ratio", 1.1)],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, str(SCRIPT), *QUICK, "--out", str(folder / "tables")]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # with tiny sizes, threads wait for each other most of the time
    done = subprocess.run(command, cwd=folder, env=one_thread, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "optimizers: repeat 2 of 2" in done.stderr
    assert "gpu: left out, it does not apply here (device cpu)" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["tables"]
    return folder / "tables"


def test_the_table_has_its_rows_and_columns_and_finite_numbers(made):
    table = pd.read_csv(made / "optimizers.csv", keep_default_na=False).set_index("case")
    assert list(table) == ["median_us", "ratio", "ratio_10", "ratio_90", "target", "met", "note"]
    numbers = table[["median_us", "ratio", "ratio_10", "ratio_90"]].to_numpy(float)
    assert np.isfinite(numbers).all() and (numbers > 0).all()
    assert table["ratio"].iloc[0] == 1 and table.index[0] == "torch AdamW fused"
    targets = {case: float(target) for case, target in table["target"].items() if target}
    assert targets == {
        "AdamS(fused=True)": 1.15,
        "PAdam(fused=True), p=0.8": 4,
        "PathProx, balance and prox": 1.6,
        "a run's training step with Adam, runtime.fused=auto": 0.75,
    }
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


def test_a_section_that_does_not_apply_here_writes_nothing(made):
    assert {path.stem for path in made.iterdir()} == {"optimizers", *TARGETS}


@pytest.mark.parametrize(
    "arguments", [("24 MLPs, PathProx",), ("one MLP 400 wide, Adam",), ("24 MLPs, L2", "--products")]
)
def test_the_step_of_a_checkout_is_a_number_of_seconds(arguments, monkeypatch, capsys):
    script = PROJECT / "scripts" / "benchmarks" / "step_of_checkout.py"
    monkeypatch.setattr(sys, "argv", [str(script), *arguments, "--quick"])
    runpy.run_path(str(script), run_name="__main__")
    assert 0 < float(capsys.readouterr().out) < 60


@pytest.mark.parametrize("section", TARGETS)
def test_a_section_of_several_parts_has_finite_numbers_and_its_targets(made, section):
    table = pd.read_csv(made / f"{section}.csv", keep_default_na=False)
    leading = ["part", "case", "against", "median_us", "per_second", "quantity"]
    assert list(table) == [*leading, "value", "value_10", "value_90", "target", "met", "note"]
    numbers = table[["median_us", "value", "value_10", "value_90"]].to_numpy(float)
    assert np.isfinite(numbers).all() and (numbers > 0).all()
    assert (table["value"].astype(float)[table["case"] == table["against"]] == 1).all()
    assert not table.duplicated(["part", "case", "against"]).any()
    with_target = table[table["target"] != ""]
    found = [(row.part, row.case, row.quantity, float(row.target)) for row in with_target.itertuples()]
    assert found == TARGETS[section]
    for row in with_target.itertuples():
        value, target = float(row.value), float(row.target)
        assert row.met == ("yes" if (value <= target if row.quantity == "ratio" else value >= target) else "no")


def test_mnist_is_compared_with_every_loader_and_its_target_is_against_torchvisions(made):
    table = pd.read_csv(made / "inputs.csv", keep_default_na=False)
    table = table[table["part"] == "MNIST"]
    loaders, ours = table[table["case"] != "wdlab"], table[table["case"] == "wdlab"]
    kinds = ("2 workers", "0 workers", "whole batches indexed")
    assert list(loaders["case"]) == list(ours["against"]) == [THEIRS, *(f"{LOADER}, {kind}" for kind in kinds)]
    best = loaders["case"][loaders["median_us"].astype(float).idxmin()]
    assert list(ours["against"][ours["target"] != ""]) == [THEIRS]
    assert list(ours["against"][ours["note"] == "the fastest"]) == [best]


@pytest.mark.parametrize("section", TARGETS)
def test_the_page_of_several_parts_shows_every_row(made, section):
    page = (made / f"{section}.md").read_text()
    table = pd.read_csv(made / f"{section}.csv", keep_default_na=False)
    for row in table.itertuples():
        against = "" if row.case == row.against else row.against
        assert f"## {row.part}\n" in page and f"| {row.case} | {against} | " in page
    assert all(part in page for part in ("git commit", "threads", "2 repeats", "torch 2"))
    assert (
        page.count("misses its target")
        == ((table["met"] == "no") & (table["part"].str.contains("Net|MLP|The loop"))).sum()
    )


@pytest.fixture
def timing(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("benchmarks.timing")


def test_ratios_and_speed_ups_are_taken_within_a_repeat(timing):
    base, case = timing.Case("base", None), timing.Case("case", None, target=3.0)
    row = timing.compared(case, [1.0, 2.0, 4.0], base, [4.0, 8.0, 8.0], timing.SPEED_UP, (10, "images"))
    assert (row.value, row.met, row.per_second, row.median_us) == (4.0, "yes", 5.0, 2e6)
    row = timing.compared(case, [4.0, 8.0, 8.0], base, [1.0, 2.0, 4.0], timing.RATIO)
    assert (row.value, row.met, row.per_second) == (4.0, "no", None)


def test_a_case_may_look_at_the_clock_itself(timing):
    options = timing.Options(timing.torch.device("cpu"), 3, 0.1, 16, False)
    own, other = timing.Case("own", iter(range(1, 9)).__next__, timed=True), timing.Case("other", lambda: None)
    assert timing.in_turn("clock", [own, other], options)[0] == [2, 3, 4]  # 1 was the warm-up


@pytest.mark.parametrize("bad", ["nan", "1e-40"])
def test_numbers_that_are_not_ordinary_are_refused(timing, bad):
    with pytest.raises(RuntimeError, match="weights"):
        timing.check_ordinary("weights", [timing.torch.tensor([1.0, float(bad)])])


def test_an_unknown_section_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "nonsense", "--out", str(tmp_path / "tables")])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "nonsense: must be one of optimizers" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
