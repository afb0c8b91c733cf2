"""Requirements of an installation: torch alone for the methods, the extra ``lab`` for the command lines."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from wdlab.records.identity import PROJECT

BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "wdlab")
COMMANDS = ("wdlab.train", "wdlab.evaluate", "wdlab.runs", "wdlab.analysis.curves")
LAB = {  # names of modules that the methods must do without
    *("PIL", "cloudpickle", "hydra", "hydra_plugins", "joblib", "matplotlib", "numpy", "omegaconf", "pandas"),
    *("pyarrow", "scipy", "sklearn", "submitit", "torchvision", "tqdm", "wandb", "yaml"),
}

# After this a module is missing, for torch's own checks too, unless it is of wdlab, of Python or among the names given.
BLOCK = """
import json, sys

allowed = {"wdlab", *sys.stdlib_module_names, *json.loads(sys.argv[1])}


class Allowed:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in allowed or top.startswith("_sysconfigdata"):
            return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path[:] = [Allowed(finder) for finder in sys.meta_path]
"""

USE = """
import torch
from torch import nn

from wdlab import homogeneous, optimizers, pruning, regularizers

torch.manual_seed(0)
inputs, labels = torch.randn(32, 6), torch.randint(3, (32,))


def network():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def trained(model, optimizer, steps=3):
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return all(p.isfinite().all() and not p.equal(b) for p, b in zip(model.parameters(), before, strict=True))


done = {}
for name in ("AdamS", "SGDS", "PAdam"):
    model = network()
    optimizer = getattr(optimizers, name)(model.parameters(), lr=1e-2, weight_decay=1e-2)
    done[name] = trained(model, optimizer)
    done[f"{name} described"] = "weight_decay 0.01" in optimizer.describe()
methods = {
    "L2": lambda model: regularizers.L2(homogeneous.weights(model), 1e-2),
    "PathProx": lambda model: regularizers.PathProx(homogeneous.homogeneous_pairs(model), 1e-2),
    "PNormDecay": lambda model: regularizers.PNormDecay(homogeneous.weights(model), 1e-2, p=0.8),
}
for name, make in methods.items():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = make(model)
    handle = method.attach(optimizer)
    done[name] = trained(model, optimizer)
    handle.remove()
    done[f"{name} described"] = "strength 0.01" in method.describe()
model = network()
with torch.no_grad():
    model[2].weight[:, :3] = 0
pruned = pruning.prune_dead_units(model)
done["prune_dead_units"] = pruned[0].out_features == 5 and torch.allclose(pruned(inputs), model(inputs), atol=1e-6)
imported = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"from": homogeneous.__file__, "done": done, "imported": imported}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build wdlab's wheel from a copy, since setuptools writes into the folder that it builds from."""
    source = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        (source / name).symlink_to(PROJECT / name)
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(source)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return source / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Unpack the wheel, which is all that its installation does."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    """Run Python in an empty place, with the packages in the folder in front of all others."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True, check=False)


def required(name: str) -> set[str]:
    """Return the name of a distribution, and those of all that it requires without extras."""
    found: set[str] = set()
    left = [name]
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        found.add(name)
        try:
            lines = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:
            continue
        left += [r.name for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def modules_of(distributions: set[str]) -> list[str]:
    """Return the names under which the distributions are imported."""
    packages = metadata.packages_distributions()
    return [name for name, of in packages.items() if distributions & {canonicalize_name(one) for one in of}]


@pytest.fixture(scope="module")
def used(installed) -> dict:
    """Use the methods where nothing but torch and its own requirements can be imported."""
    allowed = modules_of(required("torch"))
    assert "torch" in allowed and LAB.isdisjoint(allowed)
    done = run("-W", "ignore::UserWarning", "-c", BLOCK + USE, json.dumps(allowed), folder=installed)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_methods_work_with_torch_alone(used, installed):
    assert Path(used["from"]).is_relative_to(installed)
    assert {name: ok for name, ok in used["done"].items() if not ok} == {}
    assert len(used["done"]) == 13 and "torch" in used["imported"]
    assert LAB.isdisjoint(used["imported"])


def test_the_blocker_blocks(installed):
    assert {name for name in LAB if importlib.util.find_spec(name) is None} == set()
    code = BLOCK + "import importlib\nfor name in sys.argv[2:]:\n    try: importlib.import_module(name)\n"
    code += "    except ImportError: continue\n    sys.exit(name)"
    done = run("-c", code, json.dumps(["torch"]), *sorted(LAB), folder=installed)
    assert done.returncode == 0, done.stderr


def test_the_wheel_requires_torch_alone(wheel):
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        header = HeaderParser().parsestr(file.read(name).decode())
    lines = [Requirement(line) for line in header.get_all("Requires-Dist")]
    always = [str(line) for line in lines if line.marker is None or line.marker.evaluate({"extra": ""})]
    assert always == ["torch>=2.11"]
    assert set(header.get_all("Provides-Extra")) == {"lab", "slurm", "rl", "dev", "jupyter"}


def test_the_wheel_has_every_module(installed):
    expected = {path.relative_to(PROJECT) for path in (PROJECT / "wdlab").rglob("*.py")}
    assert {path.relative_to(installed) for path in installed.rglob("*.py")} == expected


def test_every_package_of_the_lab_is_in_an_extra():
    """Every module outside Python that wdlab imports is of a distribution that an extra, or torch, names."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = (*project["dependencies"], *extras["lab"], *extras["slurm"], *extras["rl"])
    named = {canonicalize_name(Requirement(r).name) for r in listed}
    packages = metadata.packages_distributions()
    for path in sorted((PROJECT / "wdlab").rglob("*.py")):
        for name in imported(path) - {"wdlab", "hydra_plugins", *sys.stdlib_module_names}:
            # an extra that is not installed is of the distribution of the same name
            assert named & {canonicalize_name(one) for one in packages.get(name, [name])}, (path.name, name)


def imported(path: Path) -> set[str]:
    """Return the first names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return {name.partition(".")[0] for name in found}


def test_the_versions_of_the_extras_are_locked():
    """A package that an extra names has its version in ``requirements.lock``, which ``make setup`` installs."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    locked = {Requirement(line).name for line in (PROJECT / "requirements.lock").read_text().splitlines()}
    locked = {canonicalize_name(name) for name in locked}
    named = {Requirement(r).name for lines in project["optional-dependencies"].values() for r in lines}
    named |= {Requirement(r).name for r in project["dependencies"]}
    missing = {canonicalize_name(name) for name in named} - locked
    assert missing <= {"setuptools", "wdlab"}  # pip freeze leaves these out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_the_lab_is_one_line(command, installed):
    done = run("-S", "-m", command, "--help", folder=installed)  # without site-packages
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {command} needs the lab; in a checkout: pip install -e '.[lab]'\n"


def test_the_analysis_without_the_lab_says_what_to_install(installed):
    done = run("-S", "-c", "import wdlab.analysis", folder=installed)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("a part of the lab; in a checkout: pip install -e '.[lab]'")
