"""A figure from its declaration to its files, on runs that are too short to mean anything."""

import copy
import json
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scripts import reproduce
from tests.test_figures_start import ENVIRONMENTS, without_delay
from tests.test_figures_start import FIGURES as STARTED
from wdlab import session
from wdlab.analysis import declaration, figures, selection, tables
from wdlab.errors import ConfigError, RunFailed
from wdlab.metrics import sharpness
from wdlab.records.identity import PROJECT, compose_config
from wdlab.studies import checkpoints

SHORT = ["train.steps=20", "train.log_every=10", "train.eval_every=10", "model.width=8"]


@pytest.fixture
def short(monkeypatch):
    """fig3 at quick scale with 20 steps a run."""
    declared = copy.deepcopy(declaration.read("fig3", "quick"))
    declared["at"]["seeds"] = [0, 1, 2]
    for panel in declared["at"]["panels"]:
        panel["shared"] += SHORT
    monkeypatch.setattr(declaration, "read", lambda *_: declared)
    return declared


@pytest.fixture
def in_process(command, monkeypatch):
    """Train the runs of a figure in this process."""

    def run(words: list[str]) -> int:
        return command(*words[words.index("wdlab.train") + 1 :]).returncode

    monkeypatch.setattr(reproduce, "run_to_its_end", run)


def test_a_figure_leaves_table_picture_and_verdicts_and_is_not_run_again(short, tmp_path, capfd):
    reproduce.reproduce("fig3", "quick", "local", "disabled", tmp_path)
    printed = capfd.readouterr().out
    files = tables.FigureFiles.of("fig3", "quick", tmp_path)
    assert all(str(path) in printed for path in (files.table, files.picture, files.verdicts))
    assert files.picture.stat().st_size > 10_000 and files.print_picture.exists()
    table = pd.read_csv(files.table)
    assert list(table.columns[:7]) == ["panel", "run", "dataset", "model", "optimizer", "regularizer", "seed"]
    assert len(table) == 12 * 3
    judged = json.loads(files.verdicts.read_text())
    assert {c["panel"] for c in judged["claims"]} == {"mlp", "factorized"}
    assert all(c["n"] == 3 and c["verdict"].upper() in printed for c in judged["claims"])
    assert judged["runs"] == {"done": 12} and judged["scale_down"] and judged["devices"] and judged["code"]
    assert [device.partition(",")[0] for device in judged["devices"]] == list(judged["compute"])
    before = {path: path.read_bytes() for path in (files.table, files.picture, files.print_picture, files.verdicts)}
    reproduce.reproduce("fig3", "quick", "local", "disabled", tmp_path)
    printed = " ".join(capfd.readouterr().out.split())
    assert "12 runs, 0 to do" in printed and "which stay as they are: equal in every number." in printed
    assert {path: path.read_bytes() for path in before} == before
    assert {(tmp_path / "local" / path.relative_to(tmp_path)).read_bytes() for path in before} == {*before.values()}


def test_files_from_elsewhere_are_left_alone_until_they_are_to_be_replaced(short, tmp_path, capfd, in_process):
    files = tables.FigureFiles.of("fig3", "quick", tmp_path)
    reproduce.reproduce("fig3", "quick", "local", "disabled", tmp_path)
    made = files.table.read_bytes()
    table = pd.read_csv(files.table)
    table.loc[5, "val/loss"] *= 2
    table.to_csv(files.table, index=False)
    judged = json.loads(files.verdicts.read_text())
    judged["claims"][0]["verdict"] = "believed"
    files.verdicts.write_text(json.dumps(judged))
    before = {path: path.read_bytes() for path in (files.table, files.verdicts)}
    capfd.readouterr()
    reproduce.reproduce("fig3", "quick", "local", "disabled", tmp_path)
    printed = " ".join(capfd.readouterr().out.split())
    assert {path: path.read_bytes() for path in before} == before
    assert f"Differs from the figure's files in {tmp_path}/, which UPDATE=1 replaces by these" in printed
    assert "not believed" in printed and f"up to 50 % (val/loss of {table['run'][5]}" in printed
    assert tables.FigureFiles.of("fig3", "quick", tmp_path / "local").table.read_bytes() == made
    reproduce.reproduce("fig3", "quick", "local", "disabled", tmp_path, update=True)
    assert files.table.read_bytes() == made and "UPDATE=1" not in capfd.readouterr().out


@pytest.fixture
def searching(monkeypatch):
    """A study with two methods of two trials each, of 20 steps."""
    lr = "optimizer.lr=tag(log,interval(1e-3,1e-1))"
    methods = {"none": [lr, "regularizer=none"], "L2": [lr, "regularizer=l2", "regularizer.strength=interval(0,1e-3)"]}
    search = {"trials": 2, "seeds": [100], "choose": {"lowest": "val/loss"}, "judged": ["train.full_gradient_every=20"]}
    panel = {
        "panel": "digits",
        "title": "Digits",
        "shared": ["model=mlp", *SHORT],
        "search": search | {"methods": methods},
    }
    declared = copy.deepcopy(declaration.read("fig3", "quick"))
    loss = next(claim for claim in declared["claims"] if "choose" not in claim)
    end = {"statistic": {"name": "value_at", "step": "last"}, "metric": "test/loss", "panels": ["digits"]}
    claim = {key: value for key, value in loss.items() if key not in ("scales", "changed", "difference")}
    declared["claims"] = [claim | end | {"a": {"method": "L2"}, "b": {"method": "none"}}]
    declared["at"] |= {"seeds": [0, 1, 2], "panels": [panel]}
    declared |= {"name": "study1", "plot": f"{__name__}.drawn_as_points", "lines": "last"}
    monkeypatch.setattr(declaration, "read", lambda *_: declared)
    return declared


def drawn_as_points(rows, panels):
    figure, axes = plt.subplots()
    axes.plot(rows["trial"], rows["test/loss"], ".")
    return figure


def test_a_search_trains_its_trials_and_then_the_chosen_settings(searching, in_process, tmp_path, monkeypatch):
    """If it ends between the two, it resumes there."""
    trained, run_with = [], reproduce.run_with

    def run_once(launcher, runs, *rest):
        trained.append([run.searched["stage"] for run in runs])
        return 1 if len(trained) == 2 else run_with(launcher, runs, *rest)

    monkeypatch.setattr(reproduce, "run_with", run_once)
    with pytest.raises(RunFailed, match="6 runs are not finished"):
        reproduce.reproduce("study1", "quick", "local", "disabled", tmp_path)
    files = reproduce.reproduce("study1", "quick", "local", "disabled", tmp_path)
    assert trained == [["trial"] * 4, ["judged"] * 6, ["judged"] * 6]
    table = pd.read_csv(files.table)
    assert list(table.columns[:5]) == ["panel", "method", "stage", "trial", "run"]
    assert table.groupby("stage")["seed"].unique().map(sorted).to_dict() == {"judged": [0, 1, 2], "trial": [100]}
    assert table["gradient/full_norm"].notna().equals(table["stage"] == "judged")
    trials = table[table["stage"] == "trial"].set_index(["method", "trial"])["val/loss"]
    for method, of_method in table[table["stage"] == "judged"].groupby("method"):
        assert set(of_method["trial"]) == {trials[method].idxmin()}
    judged = json.loads(files.verdicts.read_text())
    (claim,) = judged["claims"]
    expected = table[table["stage"] == "judged"].groupby("method")["test/loss"].mean()
    assert claim["n"] == 3 and claim["a_mean"] == pytest.approx(expected["L2"])
    assert judged["panels"]["digits"]["seeds"] == [0, 1, 2] and judged["runs"] == {"done": 10}
    assert "3 seeds" in figures.caption(searching, table)
    assert tables.holds_the_declared_runs(searching, files)


def test_a_verdict_is_in_capitals_in_front_of_its_sentence(tmp_path, capsys):
    claim = {"panel": "mlp", "verdict": "direction only", "exploratory": True, "sentence": "One is above. " * 20}
    judged = {
        "title": "one against another",
        "scale": "quick",
        "scale_down": "small images",
        "tried": "nothing",
        "panels": {"mlp": {"title": "Digits, MLP", "seeds": [0, 1, 2]}, "sim": {"title": "Paths", "starts": [0]}},
        "claims": [claim, claim | {"panel": "sim", "verdict": "reproduced", "exploratory": False, "sentence": "Yes."}],
    }
    reproduce.print_verdicts(tables.FigureFiles.of("fig9", "quick", tmp_path), judged)
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("Digits, MLP, seeds 0, 1, 2") + 1
    assert lines[first].startswith("  DIRECTION ONLY  One is above. ")
    assert all(line.startswith(" " * 18) for line in lines[first + 1 : first + 3])
    assert lines[lines.index("Paths") + 1] == "  REPRODUCED      Yes."
    assert max(len(line) for line in lines if "fig9" not in line) <= 110
    assert lines[-1].startswith("Exploratory: of fewer than 5 seeds")


def test_runs_that_fail_leave_no_figure(short, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "run_to_its_end", lambda *_: 1)
    with pytest.raises(RunFailed, match=r"12 runs are not finished .*no figure was made"):
        reproduce.reproduce("fig3", "quick", "local", "disabled", tmp_path)
    assert not tables.FigureFiles.of("fig3", "quick", tmp_path).table.exists()


def test_panels_may_share_a_run_and_checkpoints_are_measured_once(measuring, in_process, tmp_path, monkeypatch):
    """The shared runs may be a baseline that both panels are compared with."""
    (panel,) = measuring["at"]["panels"]
    measuring["at"]["panels"].append(panel | {"panel": "twin"})
    reproduce.reproduce("fig2", "quick", "local", "disabled", tmp_path)
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 12
    files = tables.FigureFiles.of("fig2", "quick", tmp_path)
    for path in (files.table, files.measured):
        one, other = (part.drop(columns="panel") for _, part in pd.read_csv(path).groupby("panel", sort=False))
        assert len(one) and one.reset_index(drop=True).equals(other.reset_index(drop=True))
    found = pd.read_csv(files.measured)
    assert (
        len(found) == 24 * len(checkpoints.SMALL_PATHS)
        and found["parameters"].between(0, 1).all()
        and "optimizer" not in found
    )
    before = files.measured.read_bytes()
    monkeypatch.setattr(checkpoints, "pruned", lambda run: pytest.fail("measured again"))
    reproduce.reproduce("fig2", "quick", "local", "disabled", tmp_path)
    assert files.measured.read_bytes() == before


@pytest.fixture
def three_figures(monkeypatch):
    """Three declared figures of which the second cannot be made; ``reproduce_all`` is run on them by a command line."""
    monkeypatch.setattr(declaration, "names", lambda: ["fig4", "fig3", "fig2"])
    made = tables.FigureFiles.of("fig4", "quick", PROJECT / "results")

    def run(error: BaseException, *arguments: str) -> tuple[int, list[str]]:
        asked = []

        def reproduced(name: str, *_) -> tables.FigureFiles:
            asked.append(name)
            if name == "fig3":
                raise error
            return made

        monkeypatch.setattr(reproduce, "reproduce", reproduced)
        monkeypatch.setattr(sys, "argv", ["reproduce.py", "all", *arguments])
        with pytest.raises(SystemExit) as ended:
            reproduce.main()
        return ended.value.code, asked

    return run


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RunFailed("2 runs are not finished"), "2 runs are not finished"),
        (SystemExit(2), "bad input, see the line above"),
        (ZeroDivisionError("a bug"), "ZeroDivisionError('a bug')"),
    ],
)
def test_a_figure_that_fails_does_not_stop_the_others(error, reason, three_figures, capsys):
    assert three_figures(error) == (1, ["fig4", "fig3", "fig2"])
    printed = capsys.readouterr()
    _, first, second, third = printed.out.splitlines()[-4:]
    assert "quick scale, 2 of 3 figures made:" in printed.out
    assert first.startswith("fig4   7 reproduced") and third.startswith("fig2   7 reproduced")
    assert second == f"fig3   NOT MADE: {reason}" and f"error: fig3: {reason}" in printed.err
    assert ("Traceback" in printed.err) == isinstance(error, ZeroDivisionError)


def test_an_interruption_stops_all_figures(three_figures):
    assert three_figures(SystemExit(130)) == (130, ["fig4", "fig3"])


def test_a_wrong_scale_is_one_line_and_nothing_is_made(three_figures, capsys):
    assert three_figures(RunFailed(""), "--scale", "huge") == (2, [])
    assert capsys.readouterr().err == "error: SCALE=huge: must be one of quick, cpu, paper\n"


def test_all_figures_are_made_in_an_empty_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(declaration, "names", lambda: ["fig4"])
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "all", "--results", str(tmp_path / "results")])
    with pytest.raises(SystemExit) as ended:
        reproduce.main()
    assert ended.value.code == 0 and capsys.readouterr().out.splitlines()[-1].startswith("fig4   7 reproduced")
    assert tables.FigureFiles.of("fig4", "quick", tmp_path / "results").picture.exists()


def test_a_picture_says_that_runs_diverged(short):
    rows = pd.DataFrame(
        {"panel": "mlp", "run": ["a", "a", "b", "b"], "seed": [0, 0, 1, 1], "step": [0, 9, 0, 9], "regularizer": "l2"}
    ).assign(**{"objective/path_norm": 1.0, "sparsity/active_units": 1.0, "train/loss": [1.0, 0.1, 1.0, np.nan]})
    caption = figures.draw(short, rows).get_supxlabel()
    assert "Runs that diverged: 1; no median is drawn where a seed is missing." in " ".join(caption.split())
    assert "diverged" not in figures.draw(short, rows.fillna(0.2)).get_supxlabel()
    own = figures.caption(short | {"at": short["at"] | {"caption": "Own text."}}, rows)
    assert f"{short['caption']} Own text. {short['paper']}." in own
    rewards = rows.assign(panel="rewards", run=rows["run"] + "r", **{"train/loss": np.nan})  # no losses at all
    assert selection.diverged(pd.concat([rows, rewards])) == {"b"} and selection.diverged(rewards) == set()
    plt.close("all")


@pytest.fixture
def measuring(monkeypatch):
    """fig2 at quick scale with 20 steps a run and two strengths, and how often a run was measured."""
    declared = copy.deepcopy(declaration.read("fig2", "quick"))
    declared["at"]["seeds"] = [0, 1, 2]
    (panel,) = declared["at"]["panels"]
    panel["shared"] += SHORT
    panel["vary"] = [["regularizer=l2,pathprox", "regularizer.strength=1e-3,1e-2"]]
    monkeypatch.setattr(declaration, "read", lambda *_: declared)
    return declared


def test_a_diverged_run_is_a_result_and_its_probes_are_missing(measuring, in_process, tmp_path):
    measuring["at"]["panels"][0]["shared"] += ["optimizer.lr=1e30"]
    reproduce.reproduce("fig2", "quick", "local", "disabled", tmp_path)
    files = tables.FigureFiles.of("fig2", "quick", tmp_path)
    measured = pd.read_csv(files.measured)
    assert measured[["parameters", "latency", "test_accuracy"]].isna().all(axis=None)
    assert set(measured["share"]) == set(checkpoints.SMALL_PATHS)
    judged = json.loads(files.verdicts.read_text())
    assert judged["runs"] == {"diverged": 12}
    assert not {claim["verdict"] for claim in judged["claims"]} & {"reproduced", "direction only"}
    assert all("diverged" in claim["note"] or "no value" in claim["note"] for claim in judged["claims"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fig99"], f"figure fig99: does not exist; available: {', '.join(declaration.names())}"),
        (["fig3", "--scale", "huge"], "SCALE=huge: must be one of quick, cpu, paper"),
        (["fig3", "--logger", "foo"], "LOGGER=foo: must be one of auto, online, offline, disabled"),
        (["fig3", "--launcher", "moon"], "LAUNCHER=moon: must be one of auto, local, joblib, stacked, slurm"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *arguments, "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        reproduce.main()
    assert ended.value.code == 2 and capsys.readouterr().err == f"error: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_stacks_are_trained_last_and_runs_in_environments_are_not_stacked(monkeypatch, tmp_path):
    """So that a missing package is reported before anything is trained."""
    trained = []
    monkeypatch.setattr(reproduce, "run_with", lambda launcher, runs, *_: trained.append((launcher, runs)) or 2)
    runs = declaration.figure_runs(declaration.read("fig14", "cpu"), tmp_path)
    with pytest.raises(SystemExit, match="2"):
        reproduce.run_missing(runs, "auto", "cpu", "disabled", tmp_path)
    assert len(trained) == 1 and trained[0][0] in ("local", "joblib")
    assert {run.panel for run in trained[0][1]} == {"resnet8", "shakespeare_gpt", "cartpole"}
    stacked = [run for run in runs if reproduce.launcher_of(run, "auto", "cpu") == "stacked"]
    assert {run.panel for run in stacked} == {"mnist_mlp"}


def test_fig3_has_all_three_of_its_panels_at_paper_scale():
    declared = declaration.read("fig3", "paper")
    assert {job.panel for job in declaration.figure_runs(declared, "anywhere")} == {"mlp", "factorized", "vgg19"}


def test_the_mnist_panels_are_the_same_runs_at_cpu_and_paper_scale():
    cpu, paper = (
        {j.directory.name for j in declaration.figure_runs(declaration.read("fig3", s), "x") if j.panel != "vgg19"}
        for s in ("cpu", "paper")
    )
    assert cpu == paper and len(cpu) == 20


STEP = (
    *("train.steps=1", "train.log_every=1", "train.eval_every=1", "train.batch_size=4"),
    *("logger=disabled", "runtime=cpu"),
)
SMALL = {  # what little data needs
    "mnist": ("dataset.val_size=10",),
    "mnist_subset": ("dataset.val_size=10", "dataset.per_class=2"),
    "cifar10": ("dataset.val_size=10",),
    "tinyshakespeare": ("dataset.val_size=300", "dataset.classes=8", "dataset.shape=[64]"),
}
NARROW = 12  # a multiple of the heads of every gpt
PARTS = ("dataset=", "model=", "optimizer=", "regularizer=", "regularizer/", "lr_schedule=", "train.sharpness_every=")


def kinds(name: str, parts: tuple[str, ...]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return the overrides of one run of a figure at paper scale for each combination of choices of ``parts``.

    Runs in environments are left out.
    """
    found = {}
    for panel in declaration.read(name, "paper")["at"]["panels"]:
        for overrides in declaration.first_overrides(panel):
            if not ENVIRONMENTS & {*overrides}:
                found.setdefault(tuple(o for o in overrides if o.startswith(parts)), overrides)
    return found


def take_a_step(overrides, data, folder, *changes) -> None:
    (dataset,) = (word.removeprefix("dataset=") for word in overrides if word.startswith("dataset="))
    places = f"paths.data={data}", f"paths.runs={folder}"
    assert session.run(compose_config([*overrides, *STEP, *SMALL[dataset], *places, *changes])) == "done", overrides


def test_every_network_at_paper_scale_takes_a_step(tiny_data, tmp_path):
    """In full size, with the first method that a figure trains it with."""
    networks = {}
    for name in declaration.names():
        networks = kinds(name, ("dataset=", "model=")) | networks
    assert len(networks) >= 7
    for overrides in networks.values():
        take_a_step(overrides, tiny_data, tmp_path, "train.sharpness_every=null")


@pytest.mark.parametrize("name", [name for name in declaration.names() if name not in STARTED])
def test_every_kind_of_run_at_paper_scale_takes_a_step(name, tiny_data, tmp_path, monkeypatch):
    """In a narrow network; the kinds of the other figures are started by ``test_figures_start``."""
    monkeypatch.setattr(sharpness, "EIGENVALUE_PRODUCTS", 2)
    monkeypatch.setattr(sharpness, "TRACE_PROBES", (2, 2))
    for overrides in kinds(name, PARTS).values():
        steps = ["train.steps=2"] * ("regularizer=cpr" in overrides)  # the first one only measures
        changes = (*steps, *without_delay(overrides))
        take_a_step(overrides, tiny_data, tmp_path, f"model.width={NARROW}", "train.sharpness_examples=4", *changes)


def test_a_figure_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="available: fig1, "):
        declaration.read("fig0", "quick")
