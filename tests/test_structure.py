"""The direction of imports, that every config composes, and that names are what their files say."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from wdlab.build import build_parts
from wdlab.records.identity import CONFIGS, PROJECT, SCIENTIFIC_KEYS, compose_config, run_name

PACKAGE = PROJECT / "wdlab"

# From the top to the bottom: a unit, which is a module or package under wdlab, imports units of lower lines only.
FLOORS = (
    ("scripts",),
    ("studies",),
    ("train", "evaluate", "runs"),
    ("sweeps",),
    ("session",),
    ("validation",),
    ("build",),
    ("loop", "stacked", "control"),
    ("engine",),
    ("optimizers", "metrics"),
    ("regularizers", "data", "records", "pruning"),
    ("homogeneous", "settings", "footprint", "search"),
    ("errors", "tensors", "schedules", "tracing", "interpolations", "strides", "models", "process", "waiting"),
)
OF_ANALYSIS = {"records", "errors", "search"}  # analysis stands apart: it reads what runs have left, without torch
LONGEST, LONGEST_LOOP = 300, 150  # lines of a file


def modules() -> dict[str, Path]:
    """Every module of wdlab and scripts by its full name."""
    files = [path for folder in ("wdlab", "scripts") for path in (PROJECT / folder).rglob("*.py")]
    names = [".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    return dict(zip(names, files, strict=True))


MODULES = modules()


def imported(name: str) -> set[str]:
    """The modules of wdlab and scripts that a module imports: at its top, in functions, and where it is a program."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    parts = {target for target in found if target in MODULES}
    return {target for target in parts if not any(other.startswith(f"{target}.") for other in parts)} - {name}


def unit(module: str) -> str:
    first, _, rest = module.partition(".")
    return rest.split(".")[0] if first == "wdlab" else first


def floor(name: str) -> int:
    """The line of a unit in ``FLOORS``."""
    floors = [number for number, units in enumerate(FLOORS) if name in units]
    assert floors, f"{name} is new: say in this test on which floor it is"
    return floors[0]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name):
    targets = {unit(target) for target in imported(name)} - {unit(name), ""}
    if name == "wdlab":
        assert imported(name) == {"wdlab.process", "wdlab.waiting"}  # which have to come before torch
    elif unit(name) == "analysis":
        assert targets <= OF_ANALYSIS
    elif unit(name) == "scripts":
        assert "scripts" not in targets
    else:
        assert all(floor(unit(name)) < floor(target) for target in targets)


def test_no_module_reaches_itself():
    reached = {name: imported(name) for name in MODULES}
    for middle, start in itertools.product(MODULES, MODULES):
        if middle in reached[start]:
            reached[start] = reached[start] | reached[middle]
    assert [name for name in MODULES if name in reached[name]] == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_can_be_read_in_one_go(name):
    assert len(MODULES[name].read_text().splitlines()) <= (LONGEST_LOOP if name == "wdlab.loop" else LONGEST)


def test_there_is_one_training_loop():
    """Whatever calls an optimizer's step, or that of a stack, is one of these: the loop's programs, and a study."""
    calls = re.compile(r"^[^`]*\b_?optimizer\.step\(", re.MULTILINE)
    found = {name for name, path in MODULES.items() if name.startswith("wdlab.") and calls.search(path.read_text())}
    assert found <= {"wdlab.engine.one_run", "wdlab.stacked.program", "wdlab.studies.one_weight"}


def test_analysis_and_the_list_of_runs_do_without_torch():
    code = "import sys, wdlab.analysis.figures, wdlab.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0


def test_the_loop_knows_no_method_and_no_figure():
    text = (PACKAGE / "loop.py").read_text()
    methods = [p.stem for p in (CONFIGS / "regularizer").glob("*.yaml") if p.stem != "none"]
    assert not re.search(rf"\b({'|'.join(methods)}|(fig|study)\d+)\b", text, re.IGNORECASE)


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
    build_parts(config)
    assert run_name(config)


@pytest.mark.parametrize("name", [p.stem for p in (CONFIGS / "regularizer").glob("*.yaml")])
def test_every_regularizer_says_what_it_decays(name):
    node = OmegaConf.load(CONFIGS / "regularizer" / f"{name}.yaml")
    assert node["scope"] in ("weights", "all") and "strength" in node


def test_no_config_refers_to_the_seed():
    """``declaration.figure_runs`` resolves a config once for all seeds."""
    assert [path.name for path in CONFIGS.rglob("*.yaml") if re.search(r"\$\{\s*\.*seed", path.read_text())] == []


def test_ruff_has_nothing_to_say():
    pytest.importorskip("ruff")
    for arguments in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *arguments, "."]
        answer = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stdout
