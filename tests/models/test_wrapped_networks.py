"""Networks of one's own train, are measured, saved and resumed, however their forward is written or wrapped."""

import copy
import json

import pytest
import torch

from wdlab import evaluate, loop, session, train
from wdlab.build import build_parts
from wdlab.errors import ConfigError
from wdlab.records.directory import RunDirectory
from wdlab.validation import check_config, error_in_code

READING = ("Asserts", "Reads", "Masks")
KEEPING = ("Keeps",)
pytestmark = pytest.mark.filterwarnings("ignore:model. .* is removed from the network:UserWarning")
WRAPPED = ("averaged", "parallel", "compiled", "partly_compiled")


@pytest.fixture
def own(compose):
    """The config of a run of one of these networks."""

    def _own(name: str, *overrides: str):
        named = (f"model._target_=tests.own_networks.{name}", f"model.name={name}", "~model.depth")
        return compose(*named, "regularizer=l2", "runtime.threads=1", *overrides)

    return _own


def records(config) -> list[dict]:
    return [json.loads(line) for line in RunDirectory.of(config).metrics.read_text().splitlines()]


@pytest.mark.parametrize("name", [*READING, *KEEPING, *WRAPPED])
def test_it_trains_as_the_plain_network_does_and_is_evaluated_pruned_and_measured(own, name):
    more = ("train.average_decay=0.9", "train.sharpness_every=20", "train.sharpness_examples=20")
    config, plain = own(name, *more), own("Plain", *more)
    assert session.run(config) == "done" and session.run(plain) == "done"
    for key in ("train/loss", "test/accuracy", "gradient/loss_norm", "average/test/loss", "norm/weight_l2"):
        assert records(config)[-1][key] == records(plain)[-1][key], key
    assert records(config)[-1]["sharpness/top_eigenvalue"] == pytest.approx(
        records(plain)[-1]["sharpness/top_eigenvalue"]
    )
    folder = RunDirectory.of(config).path
    for average in (False, True):
        found = evaluate.evaluate(folder, [], sharpness=True, average=average)
        key = "average/test/accuracy" if average else "test/accuracy"
        assert found["metrics"]["test/accuracy"] == records(config)[-1][key]


@pytest.mark.parametrize("name", [*READING, *KEEPING, *WRAPPED])
def test_it_is_resumed_to_the_same_end(own, name, monkeypatch):
    whole = own(name)
    assert session.run(whole) == "done"
    expected = records(whole)
    stopped = own(name, f"paths.runs={whole['paths']['runs']}2")
    fit, asked = loop.fit, iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", lambda *arguments: fit(*arguments[:-1], lambda: next(asked) == 12))
        with pytest.raises(KeyboardInterrupt):
            session.run(stopped)
    assert RunDirectory.of(stopped).read("status.json")["step"] == 10
    assert session.run(stopped) == "done" and records(stopped) == expected


def test_the_network_of_a_finished_run_can_be_copied_and_saved(own, tmp_path):
    config = own("Keeps", "train.sharpness_every=20", "train.sharpness_examples=20")
    session.run(config)
    model = evaluate.evaluate(RunDirectory.of(config).path, [], sharpness=True)["model"]
    copy.deepcopy(model)
    torch.save(model, tmp_path / "model.pt")


@pytest.mark.parametrize(
    "name, instead",
    [
        ("parallel", "torchrun shares a run"),
        ("compiled", "runtime.compile=true compiles"),
        ("partly_compiled", "runtime.compile=true compiles"),
        ("averaged", r"train\.average_decay keeps an average"),
    ],
)
def test_what_is_taken_off_a_network_is_said_with_what_to_use_instead(own, name, instead):
    with pytest.warns(UserWarning, match=f"is removed from the network; {instead}"):
        model = build_parts(own(name))[0]
    assert model.state_dict().keys() == build_parts(own("Plain"))[0].state_dict().keys()


@pytest.mark.parametrize("name", [*KEEPING, "compiled", "parallel", "averaged"])
def test_pathprox_sees_through_it_and_dead_units_are_pruned(own, name):
    config = own(name, "regularizer=pathprox", "regularizer.strength=0.3", "train.steps=60")
    assert session.run(config) == "done"
    found = evaluate.evaluate(RunDirectory.of(config).path, [], sharpness=True, prune=True)
    whole, pruned = found["metrics"], found["pruned"]["metrics"]
    assert 0 < whole["sparsity/active_units"] < 1
    assert pruned["test/accuracy"] == whole["test/accuracy"]


def test_a_batch_that_is_too_small_is_refused_also_where_the_forward_reads_a_value(own):
    with pytest.raises(ConfigError, match=r"train\.batch_size=1: is too small, Expected more than 1 value per channel"):
        check_config(own("Normalizes", "train.batch_size=1"))
    check_config(own("Normalizes", "train.batch_size=2"))


def test_an_error_of_its_own_is_not_taken_for_a_batch_that_is_too_small(own):
    config = own("Complains")
    assert repr(error_in_code(config)) == repr(ValueError("not with me"))
    with pytest.raises(train.RunFailed, match="failed, ValueError: not with me"):
        session.run(config)
