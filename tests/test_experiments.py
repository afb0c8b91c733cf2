"""The overlays of ``configs/experiment``: each has its command, builds, and is the figure's run that it names."""

import functools
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from wdlab.analysis import declaration
from wdlab.build import build_parts
from wdlab.records.identity import CONFIGS, SCIENTIFIC_KEYS, compose_config, run_name

FILES = sorted((CONFIGS / "experiment").glob("*.yaml"))
EMBEDDED = ("digits_pathprox", "digits_pnorm")
SHORT = ("train.steps=4", "train.log_every=4", "train.eval_every=4", "model.width=8", "logger=disabled", "runtime=cpu")


def comments(path: Path) -> str:
    """Return what stands above the settings, as one line."""
    return " ".join(line.lstrip("# ") for line in path.read_text().partition("\ndefaults:")[0].splitlines())


@functools.cache
def runs_of_figure(name: str, scale: str) -> set[str]:
    """Return the names of the runs that a figure declares at a scale."""
    return {job.directory.name for job in declaration.figure_runs(declaration.read(name, scale), "anywhere")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_experiment_begins_with_its_command_and_builds(path):
    header, command = path.read_text().splitlines()[:2]
    assert header == "# @package _global_"  # Hydra reads it in the first line only
    experiment = f"+experiment={path.stem}"
    searches = "hydra" in OmegaConf.load(path)
    rest = f"-m {experiment} hydra.sweeper.trials=16" if searches else experiment
    assert command == f"# python -m wdlab.train {rest}"
    config = compose_config([experiment])
    build_parts(config)
    assert run_name(config)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_adds_no_key(path):
    assert compose_config([f"+experiment={path.stem}"]).keys() == compose_config([]).keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_sets_nothing_but_the_science(path):
    config, defaults = compose_config([f"+experiment={path.stem}"]), compose_config([])
    for key in defaults.keys() - {*SCIENTIFIC_KEYS} | {"seed"}:
        assert config[key] == defaults[key], key


def test_an_experiment_is_the_figure_s_run_that_it_names():
    named = {path.stem: re.findall(r"a run of (fig\d+) at (\w+) scale", comments(path)) for path in FILES}
    for experiment, found in named.items():
        for figure, scale in found:
            seed = declaration.read(figure, scale)["at"]["seeds"][0]
            name = run_name(compose_config([f"+experiment={experiment}", f"seed={seed}"]))
            assert name in runs_of_figure(figure, scale), (experiment, figure, scale)


def test_every_figure_of_the_first_two_papers_has_an_experiment():
    named = {figure for path in FILES for figure in re.findall(r"a run of (fig\d+)", comments(path))}
    assert named >= {"fig1", "fig2", "fig3", "fig5", "fig7"}  # fig4 trains nothing, fig6 shares the runs of fig5


def test_another_method_can_be_chosen_on_the_command_line():
    other = compose_config(["+experiment=mnist_pathprox", "regularizer=l2"])
    assert other["regularizer"]["name"] == "l2" and other["regularizer"]["strength"] == 1e-4
    assert run_name(other) in runs_of_figure("fig3", "cpu")
    for over_time in ("constant", "late"):
        build_parts(compose_config(["+experiment=cifar10_early", f"regularizer/over_time={over_time}"]))


def test_a_sweep_goes_over_experiments_and_seeds(command, tmp_path):
    swept = (f"+experiment={','.join(EMBEDDED)}", "seed=0,1")
    done = command("-m", *swept, *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.name for path in (tmp_path / "results" / "runs").iterdir()}
    expected = {
        run_name(compose_config([f"+experiment={experiment}", f"seed={seed}", *SHORT]))
        for experiment in EMBEDDED
        for seed in (0, 1)
    }
    assert made == expected and len(made) == 4
    assert "4 finished before, 0 to do" in command("-m", *swept, *SHORT).stdout


def test_an_unknown_experiment_is_one_line(command):
    done = command("+experiment=mnist_pathproxy")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "mnist_pathproxy" in done.stderr and "mnist_pathprox," in done.stderr
