"""Run directories become one tidy table."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from wdlab import session
from wdlab.analysis import cache, load, records
from wdlab.errors import ConfigError, WdlabError
from wdlab.records.directory import RunDirectory
from wdlab.records.files import write_atomically
from wdlab.records.identity import PROJECT, compose_config, run_name


def test_one_row_per_run_and_log_point_with_the_settings_that_vary(compose, tmp_path):
    for strength in (1e-3, 1e-2):
        for seed in (0, 1):
            session.run(compose("regularizer=l2", f"regularizer.strength={strength}", f"seed={seed}"))
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
    session.run(config)
    session.run(compose("seed=4"))
    assert set(load(tmp_path / "runs", [run_name(config)])["seed"]) == {3}
    with pytest.raises(WdlabError, match="nobody: has no records"):
        load(tmp_path / "runs", ["nobody"])


def test_a_line_that_is_being_written_is_left_out(compose, tmp_path):
    config = compose()
    session.run(config)
    directory = RunDirectory.of(config)
    with directory.metrics.open("a") as file:
        file.write('{"step": 30, "train/lo')
    assert list(load(tmp_path / "runs")["step"]) == [0, 10, 20]


def test_a_folder_without_runs_is_told(tmp_path):
    assert load(tmp_path, []).empty
    with pytest.raises(WdlabError, match="has no run with records"):
        load(tmp_path)
    with pytest.raises(WdlabError, match="nosuch: no such folder of runs"):
        load(tmp_path / "nosuch")


def test_schedules_of_strength_are_in_the_table(compose, tmp_path):
    for over_time in (["constant"], ["early"], ["late", "regularizer.over_time.epochs=1"]):
        session.run(compose("regularizer=l2", f"regularizer/over_time={over_time[0]}", *over_time[1:]))
    table = load(tmp_path / "runs")
    assert set(table["regularizer.over_time"]) == {"constant", "early", "late"}


def test_settings_that_are_lists_can_be_grouped_by_and_read_back(root):
    for seed in (0, 1):
        for betas in ("[0.9,0.99]", "[0.8,0.99]"):
            write(root, seed, optimizer="adam", **{"optimizer.betas": betas})
    settle()
    table = loaded_twice(root)
    assert set(table["optimizer.betas"]) == {"[0.9, 0.99]", "[0.8, 0.99]"}
    assert table.query("step == 10").groupby("optimizer.betas")["a"].count().to_dict() == {
        "[0.8, 0.99]": 2,
        "[0.9, 0.99]": 2,
    }
    assert len(table.drop_duplicates()) == len(table) == 12
    table.to_csv(root / "table.csv", index=False)
    assert list(pd.read_csv(root / "table.csv")["optimizer.betas"]) == list(table["optimizer.betas"])
    names = {
        run_name(compose_config(["optimizer=adam", f"optimizer.betas={text}"]))
        for text in set(table["optimizer.betas"])
    }
    assert names == set(table.query("seed == 0")["run"])  # it is what the command line takes


def test_the_last_row_of_a_run_that_diverged_has_no_accuracy(root):
    write(root, 0, [{"step": 0, "test/accuracy": 0.1}, {"step": 10, "test/accuracy": None}])
    write(root, 1, [{"step": 0, "test/accuracy": 0.1}, {"step": 10, "test/accuracy": 0.9}])
    page = (PROJECT / "docs" / "results.md").read_text()
    (way,) = re.findall(r"^by_strength = table(\.groupby\(\"run\"\)\.\w+\(.*?\))\.groupby", page, re.MULTILINE)
    ends = eval(f"table{way}", {"table": load(root)})
    assert list(ends["step"]) == [10, 10] and ends.set_index("seed")["test/accuracy"].isna().to_dict() == {
        0: True,
        1: False,
    }


# -- many runs, and the cache

LINES = [{"step": 0, "a": 0.5}, {"step": 10, "a": 0.1 + 0.2, "b": 3}, {"step": 20, "b": None}]


@pytest.fixture
def root(tmp_path):
    """A folder for runs."""
    return tmp_path


def write(root, seed=0, lines=LINES, **more) -> RunDirectory:
    """A run's files as training leaves them, without training."""
    config = compose_config([f"seed={seed}", f"paths.runs={root}", *(f"{key}={value}" for key, value in more.items())])
    directory = RunDirectory.of(config)
    directory.create()
    directory.write_config(config)
    directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def settle() -> None:
    """Wait until the clock of the filesystem, which moves in steps, has moved on."""
    time.sleep(0.05)


@pytest.fixture
def parsed(monkeypatch):
    """The names of the runs whose files were parsed."""
    names = []
    parse = records.parse
    monkeypatch.setattr(records, "parse", lambda *arguments: names.append(arguments[0].name) or parse(*arguments))
    return names


def loaded_twice(root, names=None) -> pd.DataFrame:
    """Return the table, which is the same when it comes from the cache."""
    first = load(root, names)
    settle()
    load(root, names)
    pd.testing.assert_frame_equal(first, load(root, names), check_exact=True)
    return first


def test_what_was_parsed_is_not_parsed_again_and_gives_the_same_table(root, parsed):
    names = [write(root, seed, regularizer="l2", **{"regularizer.strength": 1e-3 / 3 * seed}).name for seed in range(3)]
    settle()
    table = loaded_twice(root)
    assert sorted(parsed) == sorted(names)
    assert list(table["a"])[:2] == [0.5, 0.1 + 0.2] and set(table["regularizer.strength"]) == {0, 1e-3 / 3, 2e-3 / 3}
    assert set(load(root, names[:1])["seed"]) == {0} and set(load(root, names[1:])["seed"]) == {1, 2}
    write(root, 3)
    settle()
    assert load(root)["run"].nunique() == 4 and len(parsed) == 4
    assert load(root, names[:1])["run"].nunique() == 1 and load(root)["run"].nunique() == 4 and len(parsed) == 4


def grown(directory):
    with directory.metrics.open("a") as file:
        file.write('{"step": 30, "a": 9.0}\n')
    return lambda table: list(table["a"])[3] == 9


def replaced(directory):
    write_atomically(directory.metrics, directory.metrics.read_text().replace("0.5", "0.7"))
    return lambda table: table["a"][0] == 0.7


def cut_off(directory):
    directory.metrics.write_text(directory.metrics.read_text()[:-5])
    return lambda table: len(table) == 5


def emptied(directory):
    directory.metrics.write_text("")
    return lambda table: set(table["seed"]) == {1}


def deleted(directory):
    shutil.rmtree(directory.path)
    return lambda table: set(table["seed"]) == {1}


def moved_onto_another(directory):
    write(directory.path.parent, 2).path.rename(directory.path.parent / "elsewhere")
    shutil.rmtree(directory.path)
    (directory.path.parent / "elsewhere").rename(directory.path)
    return lambda table: set(table["seed"]) == {1, 2}


def of_another_config(directory):
    directory.config.write_text(directory.config.read_text().replace("seed: 0", "seed: 7"))
    return lambda table: set(table["seed"]) == {1, 7}


CHANGES = [
    *(grown, replaced, cut_off, emptied, deleted, moved_onto_another),
    of_another_config,
]


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_of_a_run_goes_unseen(root, change):
    first = sorted([write(root, 0), write(root, 1)], key=lambda directory: directory.name != write(root, 0).name)[0]
    settle()
    loaded_twice(root)
    seen = change(first)
    table = load(root, sorted(p.parent.name for p in root.glob("*/metrics.jsonl") if p.stat().st_size))
    rows = table.sort_values("seed", kind="stable").reset_index(drop=True)
    assert seen(rows)
    settle()
    pd.testing.assert_frame_equal(loaded_twice(root), table)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no table"),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "a byte of the numbers changed": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "another table": lambda path: pd.DataFrame({"run": ["x"]}).to_parquet(path),
    "of another format": lambda path: reformatted(path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "gone": lambda path: path.unlink(),
}


def flipped(content: bytes) -> bytes:
    footer = struct.unpack("<I", content[-8:-4])[0]
    at = len(content) - 8 - footer - 10
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def reformatted(path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"format": "0"}), path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_ignored_and_written_again(root, damage, parsed):
    write(root)
    settle()
    table = loaded_twice(root)
    DAMAGES[damage](root / cache.CACHE)
    pd.testing.assert_frame_equal(loaded_twice(root), table, check_exact=True)
    assert len(parsed) == (4 if damage == "a folder" else 2)  # in whose place no file can be put
    assert not list(root.glob(".*.tmp"))


def test_a_folder_that_cannot_be_written_is_loaded_all_the_same(root, monkeypatch):
    write(root)
    settle()
    table = load(root)
    (root / cache.CACHE).unlink()
    monkeypatch.chdir(root)
    root.chmod(0o555)
    as_root = os.geteuid() == 0
    if as_root:  # who may write everywhere
        os.seteuid(65534)
    try:
        with pytest.raises(OSError):
            (root / "file").touch()
        pd.testing.assert_frame_equal(load("."), table)
    finally:
        if as_root:
            os.seteuid(0)
        root.chmod(0o755)
    assert not (root / cache.CACHE).exists()


def test_processes_that_load_at_once_do_not_disturb_each_other(root):
    for seed in range(20):
        write(root, seed)
    settle()
    code = "import sys; from wdlab.analysis import load\n"
    code += "for i in range(30): assert load(sys.argv[1])['run'].nunique() == 20\n"
    command = [sys.executable, "-c", code, str(root)]
    processes = [subprocess.Popen(command, cwd=PROJECT) for _ in range(3)]
    while any(process.poll() is None for process in processes):
        (root / cache.CACHE).unlink(missing_ok=True)
        time.sleep(0.02)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert not list(root.glob(".*.tmp"))


def test_kinds_of_columns_are_those_of_the_values(root):
    write(root, 0, [{"step": 0, "whole": 1, "mixed": 1, "null": None}], **{"model.width": 8})
    write(root, 1, [{"step": 0, "whole": 2, "mixed": 0.5, "null": 1.0, "own": 3}], **{"train.clip_norm": 1})
    table = loaded_twice(root)
    kinds = {name: str(dtype) for name, dtype in table.dtypes.items()}
    assert kinds["step"] == kinds["whole"] == kinds["seed"] == kinds["model.width"] == "int64"
    assert kinds["mixed"] == kinds["null"] == kinds["own"] == kinds["train.clip_norm"] == "float64"
    assert list(table.columns)[-5:].count("own") == 1 and kinds["run"] == "str"


BROKEN = {
    '{"step": 0}\n{"ste\n{"step": 2}\n': "metrics.jsonl: line 2 is damaged",
    '{"step": 0}\n\0\0\0\n': "metrics.jsonl: line 2 is damaged",
    "[1]\n": "metrics.jsonl: line 1 is damaged",
    '{"step": "0"}\n': "metrics.jsonl: step is not a number in every line",
}


@pytest.mark.parametrize("text", BROKEN)
def test_damaged_records_are_named(root, text):
    write(root).metrics.write_text(text)
    with pytest.raises(WdlabError, match=BROKEN[text]):
        load(root)


@pytest.mark.parametrize(("text", "message"), [("seed: [", "cannot be read"), ("seed: 0\n", "is no config of a run")])
def test_a_damaged_config_is_named(root, text, message):
    write(root).config.write_text(text)
    with pytest.raises(WdlabError, match=f"config.yaml: .*{message}"):
        load(root)


def test_a_config_is_read_from_its_parsed_copy_until_it_is_edited(root, monkeypatch):
    directory = write(root, 3)
    monkeypatch.setattr(yaml, "safe_load", lambda _: pytest.fail("parsed"))
    assert directory.read_config()["seed"] == 3
    monkeypatch.undo()
    directory.config.write_text(directory.config.read_text().replace("seed: 3", "seed: 7"))
    assert directory.read_config()["seed"] == 7


@pytest.mark.parametrize("text", [None, "", "{", "[" * 100_000, "[1]", "{}", '{"sha256 of config.yaml": 1}'])
def test_a_parsed_copy_that_is_missing_or_damaged_is_not_used(root, text):
    directory = write(root, 3)
    before = directory.read_config()
    if text is None:
        directory.parsed_config.unlink()
    else:
        directory.parsed_config.write_text(text)
    assert directory.read_config() == before == yaml.safe_load(directory.config.read_text())
    directory.config.unlink()
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot be read"):
        directory.read_config()
