"""The README and ``docs/``: every command and every Python block works, every link and every name exists."""

import contextlib
import importlib.util
import itertools
import json
import re
import runpy
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from scripts import index
from wdlab import optimizers, regularizers, search, session
from wdlab.analysis import declaration, tables
from wdlab.analysis.tables import FigureFiles
from wdlab.build import build_parts
from wdlab.records.identity import CONFIGS, PROJECT, SCIENTIFIC_KEYS, compose_config, run_name

README = PROJECT / "README.md"
PAGES = [README, PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
MOST_LINES = 180  # of the README
SHORT = ("train.steps=20", "train.log_every=10", "train.eval_every=10", "logger=disabled")
EVERYTHING = ("train.average_decay=0.9", "train.sharpness_every=20", "train.sharpness_examples=50")  # is measured
ON_RUNS = ("wdlab.runs", "wdlab.evaluate", "wdlab.analysis.curves")
UNCHECKED = ("export",)  # it acts on the reader's shell
WIDE = {"pnorm": "p = 0.8", "decoupled": "AdamW"}  # in the table of ResNets of width 32
CONTEXTS = ([], ["dataset=cifar10"], ["regularizer=l2"])  # in which a setting that a page mentions composes
RUN = re.compile(r"results/runs/([\w-]+-[0-9a-f]{12})")
on_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


class Command(NamedTuple):
    """A command of a page, as the words that the shell makes of it."""

    page: Path
    words: list[str]

    @property
    def overrides(self) -> list[str] | None:
        """The arguments of a training command, with ``-m`` for a sweep; None for any other command."""
        program = ["-m", "wdlab.train"]
        start = next((i for i in range(len(self.words)) if self.words[i : i + 2] == program), None)
        return None if start is None else self.words[start + 2 :]

    @property
    def jobs(self) -> list[list[str]]:
        """The overrides of each run that a training command starts; settings of Hydra are left out.

        An experiment's own intervals are left out too.
        """
        given = [word for word in self.overrides if word != "-m" and not word.startswith("hydra")]
        if "-m" not in self.overrides:
            return [given]
        parsed = OverridesParser.create().parse_overrides(given)
        searched = any(override.is_interval_sweep() for override in parsed)
        trials = [int(word.partition("=")[2]) for word in self.overrides if word.startswith("hydra.sweeper.trials=")]
        return search.expand(parsed, *trials) if searched else search.expand(parsed)


def fenced(page: Path, language: str = "") -> list[str]:
    """Return the blocks of code of one language; commands have none."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [code for written_in, code in blocks if written_in == language]


def commands() -> list[Command]:
    """Return the commands of all pages."""
    found = []
    for page in PAGES:
        lines = "".join(fenced(page)).replace("\\\n", " ").splitlines()
        for words in (shlex.split(line, comments=True) for line in lines):
            parts = itertools.groupby(words, lambda word: word == "&&")
            found += [Command(page, list(part)) for separates, part in parts if not separates]
    return found


def training() -> list[Command]:
    """Return the training commands, but for those that need the files of the worked example."""
    return [command for command in commands() if command.overrides and "--config-dir" not in command.overrides]


def spans(text: str) -> list[str]:
    """Return the code within lines of text."""
    return re.findall(r"(?<!`)`([^`]+)`(?!`)", text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder in which the README's sweep was run, with fewer steps, and where results can be written."""
    there = tmp_path_factory.mktemp("reader")
    (sweep,) = [c for c in training() if c.page == README and "-m" in c.overrides]
    for strength, runs_in in (("1e-4", "runs"), ("1e-4", "runs_width32"), ("1e-3", "runs_width32")):
        for overrides in sweep.jobs if runs_in == "runs" else sweep.jobs[:1]:
            to = f"paths.runs={there / 'results' / runs_in}"
            given = [] if runs_in == "runs" else [f"regularizer.strength={strength}"]
            session.run(compose_config([*overrides, *SHORT, *EVERYTHING, *given, to]))
    for command in training():
        for word in command.overrides:
            own = there / word.removeprefix("paths.runs=")
            if word.startswith("paths.runs=") and not own.exists():
                own.symlink_to(there / "results" / "runs")
    (there / "results" / "examples").mkdir()
    return there


# -- the pages


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= MOST_LINES


def test_the_index_of_figures_is_that_of_the_declarations_and_verdicts(monkeypatch):
    """``test_results`` checks that the tables hold the declared runs."""
    monkeypatch.setattr(tables, "holds_the_declared_runs", lambda *_: True)
    readme = index.README.read_text()
    assert readme == index.with_new_index(readme), "make index"
    assert all(f"`make reproduce-{name}`" in readme for name in declaration.names())


def test_the_index_marks_verdicts_of_other_runs_than_those_that_are_declared():
    declared = declaration.read("fig1", "quick")
    assert not index._verdicts(declared).endswith(index.EARLIER)
    declared["at"]["seeds"].append(1000)
    assert index._verdicts(declared).endswith(index.EARLIER)


def test_the_index_has_a_column_for_a_scale_once_a_figure_was_made(monkeypatch):
    monkeypatch.setattr(declaration, "names", lambda: ["fig3", "fig4"])
    monkeypatch.setattr(index, "_verdicts", lambda at: at["scale"] if at["scale"] == "cpu" else index.NOT_MADE)
    head, _, first, _, _, sentence = index.table().splitlines()
    assert head.count("|") == first.count("|") == 6 and "| cpu |" in first and "`quick` |" not in head
    assert sentence == "No figure has been made at `quick` or `paper` scale yet."


@on_every_page
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link.partition("#")[0]).exists()]
    assert not missing


def test_the_readme_links_to_every_page():
    text = README.read_text()
    assert all(f"({page.relative_to(PROJECT)})" in text for page in PAGES if page != README)


@on_every_page
def test_no_sentence_is_on_two_pages(page):
    def sentences(of):
        prose = re.sub(r"^(\|.*|```.*?^```)$", "", of.read_text(), flags=re.DOTALL | re.MULTILINE)
        return {s for s in re.split(r"(?<=[.:])\s", " ".join(prose.split())) if len(s.split()) > 7}

    for other in PAGES:
        assert other == page or not sentences(page) & sentences(other), other.name


# -- names


def test_every_method_and_config_is_named():
    text = README.read_text() + (PROJECT / "docs" / "methods.md").read_text()
    for name in {*regularizers.__all__} - {"Regularizer", "OverTime"}:
        assert f"`{name}`" in text, name
    for name in ("AdamS", "SGDS", "PAdam"):
        assert hasattr(optimizers, name) and f"`{name}`" in text
    for group in ("dataset", "model", "optimizer", "regularizer", "regularizer/over_time", "lr_schedule"):
        for path in (CONFIGS / group).glob("*.yaml"):
            named = path.stem.replace("13_bn", "11_bn").replace("16_bn", "11_bn")  # of these only the ends are listed
            assert re.search(rf"[`=]{named}`", text), f"{group}/{path.name}"


def test_every_metric_is_explained(folder):
    explained = {span.rpartition("/")[2] for span in spans((PROJECT / "docs" / "metrics.md").read_text())}
    for path in (folder / "results" / "runs").glob("*/metrics.jsonl"):
        logged = {key for line in path.read_text().splitlines() for key in json.loads(line)}
        assert {key.rpartition("/")[2] for key in logged} <= explained


@on_every_page
def test_every_setting_composes(page):
    keys = "|".join((*SCIENTIFIC_KEYS, "runtime", "logger", "fail_fast", "paths"))
    for span in spans(page.read_text()):
        overrides = shlex.split(span) if span.count("'") % 2 == 0 else [span]
        if not all(re.match(rf"({keys})[./\w]*=[^.]", word) and not word.endswith("=") for word in overrides):
            continue
        if any("," in word and "{" not in word for word in overrides):
            overrides = [word.partition(",")[0] for word in overrides]  # a sweep: its first job
        for context in CONTEXTS:
            with contextlib.suppress(Exception):
                compose_config([*context, *overrides])
                break
        else:
            pytest.fail(f"{span}: does not compose")


def test_every_module_that_is_named_exists():
    for page in PAGES:
        for name in re.findall(r"-m (wdlab[\w.]*)", page.read_text()):
            assert importlib.util.find_spec(name), f"{page.name}: {name}"


# -- commands


def test_every_command_is_of_a_kind_that_is_checked():
    for page, words in commands():
        program = words[1] if words[0] == "sudo" else words[0]
        module = words[words.index("-m") + 1] if "-m" in words else None
        known = program == "make" or program in UNCHECKED or program == "scripts/slurm/single_node.sh"
        assert known or module in ("wdlab.train", *ON_RUNS), f"{page.name}: {words}"
        if program.startswith("scripts/"):
            script = (PROJECT / program).read_text()
            action = words[words.index(program) + 1]
            assert re.search(rf"^(\w+ \| )*{action}( \| \w+)*\)", script, re.MULTILINE), action


def test_every_make_command_has_its_target():
    in_text = [shlex.split(span) for page in PAGES for span in spans(page.read_text()) if span.startswith("make ")]
    named = {tuple(words) for words in in_text} | {tuple(c.words) for c in commands() if c.words[0] == "make"}
    targets = {words for words in named if "reproduce-figN" not in words}
    assert len(targets) > 10
    for words in targets:
        command = ["make", "-n", "PYTHON=python3", *words[1:]]  # a search for Python takes a second with pyenv
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr)


def test_every_training_command_composes_and_builds():
    assert len(training()) >= 12
    known = set(compose_config([]))
    for command in training():
        for overrides in command.jobs:
            config = compose_config(overrides)
            assert set(config) == known, overrides  # +group=choice of a group that does not exist adds a key
            if config["seed"] == 0:
                build_parts(config)
        for word in command.overrides:
            if word.startswith("hydra/launcher="):
                name = word.partition("=")[2]
                assert name == "joblib" or (CONFIGS / "hydra" / "launcher" / f"{name}.yaml").exists()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # the test has imported it, a shell not
@pytest.mark.parametrize(
    "words", [c.words for c in commands() if {*c.words} & {*ON_RUNS}], ids=lambda words: " ".join(words[2:5])
)
def test_every_command_on_runs_works_on_runs_of_the_sweep(folder, command, words):
    example = next((folder / "results" / "runs").glob("*pathprox*")).name
    module, *arguments = [RUN.sub(f"results/runs/{example}", word) for word in words[2:]]
    done = command(*arguments, main=lambda: runpy.run_module(module, run_name="__main__"), cwd=folder)
    assert done.returncode == 0, done.stderr


# -- Python


@on_every_page
def test_the_python_blocks_run_one_after_the_other(page, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    names: dict = {}
    for block in fenced(page, "python"):
        if file := re.match(r"# (\w+\.py)\n", block):
            (folder / file[1]).write_text(block)
        elif "stable_baselines3" not in block or importlib.util.find_spec("stable_baselines3"):
            exec(block, names)
    if page.name == "methods.md":
        assert "strength in force" in capsys.readouterr().out


def test_the_worked_example_trains_outside_the_checkout(tmp_path, shell):
    page = PROJECT / "docs" / "adding.md"
    for block in fenced(page, "python") + fenced(page, "yaml"):
        if file := re.match(r"# ([\w/]+\.(?:py|yaml))\n", block):
            (tmp_path / file[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file[1]).write_text(block)
    examples = [c.overrides for c in commands() if c.page == page and "--config-dir" in (c.overrides or ())]
    assert len(examples) == 2
    for overrides in examples:
        done = shell(*overrides, *SHORT)
        assert done.returncode == 0, done.stderr
    trained = [path.parent.name for path in (tmp_path / "results" / "runs").glob("*/summary.json")]
    assert len(trained) == 7 and sum("-cauchy-" in name for name in trained) == 4


# -- results that a page names


def test_the_runs_that_the_pages_name_are_those_of_their_commands():
    named = {name for page in PAGES for name in RUN.findall(page.read_text())}
    alone = {run_name(compose_config(c.jobs[0])) for c in training() if len(c.jobs) == 1}
    assert len(named) == 3 and named <= alone, named - alone
    wide = [c for c in training() if "model.width=32" in c.overrides]
    swept = {run_name(compose_config(overrides)) for c in wide for overrides in c.jobs}
    for example in (PROJECT / "results" / "examples").glob("*.csv"):
        assert set(pd.read_csv(example)["run"]) <= named | swept, example


def test_the_numbers_of_the_headline_are_those_of_the_verdicts():
    text = " ".join(README.read_text().split())
    quick, cpu = (
        json.loads(FigureFiles.of("fig3", scale, PROJECT / "results").verdicts.read_text())
        for scale in ("quick", "cpu")
    )
    exact, objective = (
        [claim["verdict"] for claim in quick["claims"] if (claim["id"] == "lower_objective") == wanted]
        for wanted in (False, True)
    )
    assert f"trains {sum(quick['runs'].values())} small networks" in text
    assert f"exact zeros ({exact.count('reproduced')} reproduced)" in text and exact.count("reproduced") == len(exact)
    assert f"({objective.count('inconclusive')} inconclusive, {objective.count('contradicted')} contradicted)" in text
    lower = {c["panel"]: -np.expm1(c["mean_difference"]) for c in cpu["claims"] if c["id"] == "lower_objective"}
    percent = {panel: f"{100 * value:.0f} %" for panel, value in lower.items()}
    assert f"is {percent['mlp']} lower on average on the MLP and {percent['factorized']} on the factorized MLP" in text


def test_the_committed_resnets_of_width_32_are_those_of_the_page():
    text = (PROJECT / "docs" / "results.md").read_text()
    rows = pd.read_csv(PROJECT / "results" / "examples" / "resnet18_width32.csv")
    ends = rows.groupby("run").tail(1).groupby(["regularizer", "regularizer.strength"])
    for (name, strength), means in ends[["sparsity/weights", "val/accuracy", "test/accuracy"]].mean().iterrows():
        shown = " | ".join(f"{100 * value:.1f} %" for value in means)
        assert re.search(rf"\| {WIDE[name]}[^|]* \| {strength:g} \| {shown} \|", text), (name, strength, shown)


def test_the_committed_resnet_reaches_88_percent_in_30_epochs():
    curve = pd.read_csv(PROJECT / "results" / "examples" / "resnet18_cifar10.csv")
    assert curve["epoch"].max() <= 30 and curve["average/test/accuracy"].max() >= 0.88
