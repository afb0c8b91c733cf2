"""Every number that six small trainings log, so that a change of the code that changes one of them is seen.

Each file of ``tests/golden_curves`` but ``machine.json`` holds a command line and the lines of ``metrics.jsonl`` that
its runs wrote. On the machine that recorded them, described in ``machine.json``, every number has to come out bit for
bit. Elsewhere sums are rounded differently and ``TOLERANCE`` applies. The networks, batches and learning rates are so
small that rounding does not grow over the 30 steps: a rectified unit close to zero that is on elsewhere and off here
changes a gradient by 1e-3, and a batch of 16 images has such a unit every few steps.

The tests never write these files. Where numbers are meant to change, record all of them anew and commit them with the
reason::

    python -m tests.test_golden_curves

A new curve is a new file with its ``overrides`` and ``"runs": {}``, recorded in the same way.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from wdlab import train
from wdlab.records.identity import compose_config

FOLDER = Path(__file__).resolve().parent / "golden_curves"
MACHINE = FOLDER / "machine.json"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json") if path != MACHINE)
STACKED = "hydra/launcher=stacked"
TOLERANCE = 1e-5  # relative, elsewhere; measured with AVX2 and with no vectors at all: 3e-6 at most, but for FLOOR
FLOOR = 1e-7  # in addition: the rounding of a float32 near 1, and updates and cosines are differences of such numbers
PROCESSOR = ("cpu family", "model", "stepping", "cache size", "flags")  # lines of /proc/cpuinfo
UNIT = 1 / 32  # in addition, of sparsities: one of the MLP's 32 units may become zero one log line later

Row = dict[str, Any]
Runs = dict[str, list[Row]]


def read(name: str) -> dict[str, Any]:
    """Return the content of a file of golden curves."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def train_anew(overrides: Sequence[str], folder: Path) -> tuple[Runs, dict[str, Any]]:
    """Train what a command line asks for, in an empty folder.

    Returns:
        The lines of ``metrics.jsonl`` of each run, named by its regularizer and seed, and the machine.
    """
    write_images(folder / "data" / "cifar10")
    words = ["wdlab", *overrides, f"paths.data={folder / 'data'}", f"paths.runs={folder / 'runs'}"]
    GlobalHydra.instance().clear()
    with mock.patch.dict(os.environ), mock.patch.object(sys, "argv", words):
        train.main()
    curves, machine = {}, {}
    for records in (folder / "runs").glob("*/metrics.jsonl"):
        config = yaml.safe_load((records.parent / "config.yaml").read_text())
        session = json.loads((records.parent / "provenance.json").read_text())["sessions"][-1]
        assert session["stacked"] == (STACKED in overrides)
        name = f"{config['regularizer']['name']}, seed {config['seed']}"
        curves[name] = [json.loads(line) for line in records.read_text().splitlines()]
        machine = {"device": session["device"], "torch": session["versions"]["torch"], "threads": session["threads"]}
        machine["processor"] = processor()
    return dict(sorted(curves.items())), machine


def processor() -> str:
    """Return a hash of what distinguishes processors of one name: model, stepping, caches, instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return "unknown"
    kept = [
        line
        for line in lines
        if line.split("\t")[0].strip() in ("cpu family", "model", "stepping", "cache size", "flags")
    ]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:12]


def write_images(folder: Path) -> None:
    """Write 60 random images of CIFAR-10's shape for training and 60 for testing, the same ones every time."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        images = []
        for _ in range(60):
            file = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "png")
            images.append({"bytes": file.getvalue(), "path": None})
        pd.DataFrame({"img": images, "label": np.arange(60) % 10}).to_parquet(folder / f"{part}.parquet")


def smallest_split(overrides: Sequence[str]) -> int:
    """Return the number of validation examples, below which no split is; of a text its characters, which are more."""
    return compose_config([o for o in overrides if o != "-m" and "," not in o])["dataset"]["val_size"]


def differences(found: Runs, golden: Runs, example: float | None = None) -> list[str]:
    """Return a line for every number that is not the golden one.

    Args:
        found, golden: the lines of each run.
        example: the share of one example among the smallest split's. None compares bit for bit, else tolerances apply.
    """
    assert found.keys() == golden.keys()
    lines = []
    for name, rows in golden.items():
        assert [row["step"] for row in found[name]] == [row["step"] for row in rows]
        for ours, theirs in zip(found[name], rows, strict=True):
            assert ours.keys() == theirs.keys(), f"{name}, step {ours['step']}: other columns"
            for column, expected in theirs.items():
                if ours[column] != expected and not (example and is_close(column, ours[column], expected, example)):
                    lines.append(f"{name}, step {ours['step']}, {column}: {ours[column]!r}, golden {expected!r}")
    return lines


def is_close(column: str, value: float | None, expected: float | None, example: float) -> bool:
    """Return True if a number is as close to the golden one as rounding allows."""
    if value is None or expected is None:
        return False
    floor = example if column.endswith("/accuracy") else UNIT if column.startswith("sparsity/") else FLOOR
    return abs(value - expected) <= floor + TOLERANCE * abs(expected)


@pytest.mark.parametrize("name", NAMES)
def test_curve_is_the_golden_one(name, tmp_path):
    golden = read(name)
    found, machine = train_anew(golden["overrides"], tmp_path)
    same_machine = machine == json.loads(MACHINE.read_text())
    example = None if same_machine else 1 / smallest_split(golden["overrides"])
    lines = differences(found, golden["runs"], example)
    how = "bit for bit" if same_machine else "elsewhere"
    assert not lines, "\n".join([f"{len(lines)} numbers differ, {how}:", *lines[:20]])


def test_tolerances_hold_with_other_instructions():
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)  # compiled for the other instructions
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "golden_one"]
    done = subprocess.run(command, cwd=FOLDER.parent.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_one_bit_and_one_step_are_seen():
    golden = read("mlp_sgd_pathprox")["runs"]
    assert not differences(golden, golden)
    ((name, rows),) = golden.items()
    for column in rows[-1].keys() - {"step"}:
        changed = {name: [*rows[:-1], rows[-1] | {column: np.nextafter(rows[-1][column], np.inf).item()}]}
        (line,) = differences(changed, golden)
        assert f"step 30, {column}:" in line
        assert not differences(changed, golden, example=1e-3)
    late = {name: [rows[0], *({**row, "train/loss": 0.0} if "train/loss" in row else row for row in rows[1:])]}
    assert len(differences(late, golden, example=1e-3)) == 3  # the evaluations at steps 10, 20 and 30


def record() -> None:
    """Train all curves and write what they logged, with the machine, into their files."""
    for name in NAMES:
        golden = read(name)
        with tempfile.TemporaryDirectory() as folder:
            golden["runs"], machine = train_anew(golden["overrides"], Path(folder))
        (FOLDER / f"{name}.json").write_text(as_text(golden))
    MACHINE.write_text(json.dumps(machine, indent=2) + "\n")


def as_text(golden: dict[str, Any]) -> str:
    """Return golden curves as JSON with one line per row, so that a difference can be read."""
    runs_of_it = []
    for name, rows in golden["runs"].items():
        lines = ",\n".join(f"      {json.dumps(row)}" for row in rows)
        runs_of_it.append(f"    {json.dumps(name)}: [\n{lines}\n    ]")
    overrides = json.dumps(golden["overrides"], indent=4).replace("\n]", "\n  ]")
    return f'{{\n  "overrides": {overrides},\n  "runs": {{\n' + ",\n".join(runs_of_it) + "\n  }\n}\n"


if __name__ == "__main__":
    record()
