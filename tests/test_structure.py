"""The direction of imports, that every config composes, and that names are what their files say."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from wdlab.analysis import declaration
from wdlab.build import build
from wdlab.records.identity import CONFIGS, PROJECT, SCIENTIFIC_KEYS, compose_config, run_name

PACKAGE = PROJECT / "wdlab"

# Who may import whom, module or package by its first name under wdlab; everyone may import errors.
ALLOWED = {
    "errors": set(),
    "schedules": set(),
    "tracing": set(),
    "homogeneous": {"tracing"},
    "models": set(),
    "progress": {"runs", "stopping"},
    "stopping": set(),
    "interpolations": set(),
    "runs": {"interpolations"},
    "data": set(),
    "device": {"cpu", "gpus", "parallel"},
    "gpus": set(),
    "parallel": set(),
    "pruning": {"homogeneous"},
    "cpu": set(),
    "waiting": set(),
    "recorder": set(),
    "checkpoint": {"runs"},
    "foreach": set(),
    "strides": set(),
    "regularizers": {"foreach", "homogeneous", "schedules"},
    "optimizers": {"foreach", "regularizers", "strides"},
    "metrics": {"homogeneous", "regularizers", "data"},
    "averaging": {"data", "metrics"},
    "loop": {
        *("averaging", "checkpoint", "data", "device", "metrics", "progress", "recorder", "regularizers", "runs"),
        "strides",
    },
    "stacked": {
        *("data", "foreach", "loop", "metrics", "models", "optimizers", "progress", "recorder", "regularizers"),
        "runs",
    },
    "ledger": {"runs", "train"},
    "launchers": {"interpolations", "runs", "stacked", "stopping", "train"},
    "slurm": {"runs"},
    "sweep": {"interpolations", "launchers", "parallel", "progress", "runs", "slurm", "stopping", "train"},
    "train": {
        *("checkpoint", "data", "device", "interpolations", "loop", "metrics", "models", "parallel", "progress"),
        *("recorder", "regularizers", "runs", "stopping", "sweep"),
    },
    "evaluate": {"averaging", "checkpoint", "data", "device", "metrics", "pruning", "runs", "tracing", "train"},
    "simulations": {"regularizers"},
    "measurements": {"checkpoint", "evaluate", "homogeneous", "metrics", "runs", "train"},
    "analysis": {"runs"},
}


def imported(path: Path) -> set[str]:
    """First names under wdlab that a file imports, anywhere in it but where it is run as a program."""
    found = set()
    body = [node for node in ast.parse(path.read_text()).body if not is_for_programs(node)]
    for node in itertools.chain.from_iterable(map(ast.walk, body)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("wdlab.")}
        assert not any(name.split(".")[0] == "scripts" for name in names), path
    return {name for name in found if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


def is_for_programs(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    name = unit(path)
    if name == "__init__":
        assert imported(path) == {"waiting"}  # which has to come before torch
        return
    assert name in ALLOWED, f"{name} is new: say in this test what it may import"
    assert imported(path) - {name, "errors"} <= ALLOWED[name]


def test_the_allowed_arrows_have_no_cycle_but_train_and_its_sweeps():
    reached = {name: set(targets) for name, targets in ALLOWED.items()}
    for middle, start in itertools.product(ALLOWED, ALLOWED):
        if middle in reached[start]:
            reached[start] |= reached[middle]
    assert {name for name in ALLOWED if name in reached[name]} == {"train", "sweep", "launchers"}


def test_analysis_and_runs_do_without_torch():
    code = "import sys, wdlab.analysis.figures, wdlab.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0


def test_the_loop_knows_no_method_and_no_figure():
    text = (PACKAGE / "loop.py").read_text()
    methods = [p.stem for p in (CONFIGS / "regularizer").glob("*.yaml") if p.stem != "none"]
    assert not re.search(rf"\b({'|'.join(methods)}|fig\d+)\b", text, re.IGNORECASE)


GROUPS = ("dataset", "model", "optimizer", "regularizer", "regularizer/over_time", "lr_schedule", "runtime", "logger")
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONFIGS / group).glob("*.yaml"))]


BESIDE = {  # what a choice needs where it does not go with the default
    "model=gpt": ["dataset=tinyshakespeare"],
    "dataset=tinyshakespeare": ["model=gpt"],
    "dataset=descriptions": ["model=gpt"],
    **{f"model={p.stem}": ["dataset=mnist"] for p in (CONFIGS / "model").glob("vgg*.yaml")},
}


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_config_composes_and_builds(group, name):
    config = compose_config([f"{group}={name}", *BESIDE.get(f"{group}={name}", ())])
    if group in SCIENTIFIC_KEYS:
        assert config[group]["name"] == name
    build(config)
    assert run_name(config)


@pytest.mark.parametrize("name", [p.stem for p in (CONFIGS / "regularizer").glob("*.yaml")])
def test_every_regularizer_says_what_it_decays(name):
    node = OmegaConf.load(CONFIGS / "regularizer" / f"{name}.yaml")
    assert node["scope"] in ("weights", "all") and "strength" in node


@pytest.mark.parametrize("scale", declaration.SCALES)
@pytest.mark.parametrize("name", declaration.names())
def test_every_figure_declares_every_scale(name, scale):
    declared = declaration.read_declaration(name, scale)
    names = [job.directory.name for job in declaration.figure_runs(declared, "anywhere")]
    simulated = [panel for panel in declared["at"]["panels"] if "simulate" in panel]
    assert (names or simulated) and len(set(names)) == len(names)
    assert declared["at"]["scale_down"] and declared["claims"]


def test_ruff_has_nothing_to_say():
    pytest.importorskip("ruff")
    for arguments in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *arguments, "."]
        answer = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stdout
