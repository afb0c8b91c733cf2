"""The runs of ``paper`` scale, which no test can train: each method composes, and takes a step in a tiny network."""

import json
import re

import pytest

from wdlab import session
from wdlab.analysis import declaration
from wdlab.metrics import sharpness
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import compose_config

FIGURES = ("fig8", "fig9", "fig10", "fig11", "fig12", "fig13", "fig14", "fig15", "fig16", "fig17", "fig18", "study2")
LEVELS = re.compile(
    r"(optimizer|regularizer|dataset|lr_schedule)\.[\w.]*(strength|zeros|threshold|epochs|lr|size|noise|milestones)="
)
ENVIRONMENTS = {"dataset=cartpole", "dataset=acrobot"}  # they need the extra rl; tests/control takes their steps
TEXT = ("dataset.val_size=400", "dataset.shape=[16]", "dataset.classes=8", "model.heads=2")
TINY = (
    "dataset.val_size=10",
    "model.width=4",
    "train.steps=1",
    "train.batch_size=12",
    "train.log_every=1",
    "train.eval_every=1",
    "train.sharpness_examples=4",
    "runtime=cpu",
    "logger=disabled",
)


def methods(name: str) -> list[tuple[str, ...]]:
    """The overrides of one run for each panel and method of a figure at paper scale: its first level.

    Runs in environments are left out.
    """
    first = {}
    for panel in declaration.read(name, "paper")["at"]["panels"]:
        for overrides in declaration.first_overrides(panel):
            if not ENVIRONMENTS & {*overrides}:
                settings = (word for word in overrides if not LEVELS.match(word))
                first.setdefault((panel["panel"], *settings), overrides)
    return list(first.values())


def without_delay(overrides: tuple[str, ...]) -> list[str]:
    """What lets a decay begin at once that would begin after the only step, which is an error."""
    if not {"regularizer=delayed", "regularizer/over_time=delayed", "regularizer/over_time=late"} & {*overrides}:
        return []
    in_steps = any(word.startswith("regularizer.over_time.steps=") for word in overrides)
    return [f"regularizer.over_time.{'steps' if in_steps else 'epochs'}=0"]


@pytest.mark.parametrize("name", FIGURES)
def test_every_method_of_the_paper_scale_takes_a_step(name, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(sharpness, "EIGENVALUE_PRODUCTS", 2)
    monkeypatch.setattr(sharpness, "TRACE_PROBES", (2, 2))
    for overrides in methods(name):
        short = [f"paths.data={tiny_data}", f"paths.runs={tmp_path}"]
        probes = ("train.full_gradient_every", "train.sharpness_every")
        short += [f"{key}=1" for key in probes if any(word.startswith(f"{key}=") for word in overrides)]
        text = TEXT if "dataset=tinyshakespeare" in overrides else ()
        short += ["dataset.train_size=null"]  # the tiny data have fewer examples
        short += without_delay(overrides)
        config = compose_config([*overrides, *TINY, *text, *short])
        session.run(config)
        run = RunDirectory.of(config)
        assert run.status == "done", overrides
        last = json.loads(run.metrics.read_text().splitlines()[-1])
        assert last["step"] == 1 and last["strength"] >= 0
