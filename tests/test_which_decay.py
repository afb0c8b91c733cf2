"""The page which decay to use is what the committed table says; no number in it is written by hand."""

import re

import matplotlib.pyplot as plt
import pytest

from scripts import which_decay
from wdlab.analysis import ranking
from wdlab.analysis.plots import which_decay as plots
from wdlab.analysis.tables import FigureFiles

TASKS = which_decay.tasks()
DIGIT = re.compile(r"\d")


def test_the_committed_page_is_that_of_the_results():
    """If this fails, `make which-decay`."""
    assert which_decay.PAGE.read_text() == which_decay.page(TASKS)


def test_every_scale_that_was_made_is_on_the_page():
    made = [s for s in which_decay.SCALES if FigureFiles.of(which_decay.STUDY, s, which_decay.RESULTS).table.exists()]
    page = which_decay.page(TASKS)
    assert made and [scale for scale in which_decay.SCALES if f"## The tasks at `{scale}` scale" in page] == made


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.scale}-{task.panel['panel']}")
def test_a_task_names_its_methods_that_may_be_the_best_with_their_numbers(task):
    page = which_decay.page([task])
    best = ", ".join(f"*{method}*" for method in task.best)
    assert f"{len(task.best)} of {len(task.found)} methods may be the best: {best}." in page
    assert len(task.best) >= 1 and len(task.found) >= 14
    again = ranking.against_best(ranking.scores(task.rows, task.panel), ranking.metric_of(task.panel)[1])
    for method, row in again.iterrows():
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {method} |"))
        assert f"| {task.value(row['mean'])} [" in line and ("| yes |" in line) == row["may_be_best"]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.scale}-{task.panel['panel']}")
def test_the_verdict_on_the_usual_method_and_none_is_on_the_page(task):
    claim = task.usual_or_none
    assert claim["id"].startswith("decay_against_none") and claim["panel"] == task.panel["panel"]
    measured = claim["sentence"].split(" Measured: ")[1]
    assert f"  - {task.title}: *{claim['verdict']}*. Measured: {measured}\n" in which_decay.page([task])


@pytest.mark.parametrize("ends", [(5.6, 10.5), (0.2, 0.9), (1, 300), (1e-3, 1e2)])
def test_a_logarithmic_axis_has_two_or_three_labels(ends):
    figure, axes = plt.subplots()
    axes.set(xscale="log", xlim=ends)
    plots._label_few(axes)
    figure.canvas.draw()
    assert 2 <= len([label for label in axes.get_xticklabels() if label.get_text()]) <= 3
    plt.close(figure)


def test_no_number_is_written_by_hand():
    prose = re.sub(r"`.*?`|\]\(.*?\)|study1|L2", "", which_decay.TEMPLATE.read_text())
    assert not DIGIT.search(prose)
