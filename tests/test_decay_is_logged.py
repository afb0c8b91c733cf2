"""At its start a run says what is decayed, how strongly, and whether that is multiplied by the learning rate."""

import pytest

from wdlab import session
from wdlab.errors import ConfigError
from wdlab.interpolations import plain
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import run_name
from wdlab.sweeps import stacks


@pytest.fixture
def told(compose, caplog, monkeypatch):
    """What a run logs of its decay, line by line, without the run's name."""
    monkeypatch.setattr(session.log, "propagate", True)

    def _told(*overrides: str, level: str = "INFO") -> list[str]:
        config = compose(*overrides)
        caplog.clear()
        with caplog.at_level(level, logger="wdlab"):
            assert session.run(config) == "done"
        lines = [record.getMessage() for record in caplog.records]
        assert lines[0].endswith(": started") and ": done after" in lines[-1]
        return [line.removeprefix(f"{run_name(config)}: ") for line in lines[1:-1]]

    return _told


def test_the_method_s_decay_and_the_optimizer_s_are_each_told_in_a_line(told):
    assert told() == ["nothing is decayed"]
    (l2,) = told("regularizer=l2", "regularizer.strength=1e-4")
    assert l2.startswith("L2: 4 tensors, ") and "strength 0.0001, multiplied by the learning rate" in l2
    (adamw,) = told("optimizer=adamw", "optimizer.weight_decay=0.02")
    assert adamw.startswith("AdamW: ") and "weight_decay 0.02, multiplied by the learning rate" in adamw
    both = told("optimizer=padam", "regularizer=l1", "regularizer.strength=1e-3", "regularizer/over_time=early")
    assert [line.split(":")[0] for line in both] == ["L1", "PAdam"] and "Early(epochs=5)" in both[0]


def test_every_tensor_is_told_if_asked_for(told):
    (text,) = told("regularizer=l2", level="DEBUG")
    summary, *tensors = text.splitlines()
    assert summary.startswith("L2: 4 tensors") and len(tensors) == 4
    assert all("weight" in tensor and "0.0001" in tensor for tensor in tensors)


def test_a_finished_run_tells_it_too_if_asked_for(told, compose, caplog):
    assert told("regularizer=l2")
    caplog.clear()
    with caplog.at_level("DEBUG", logger="wdlab"):
        session.run(compose("regularizer=l2"))
    assert [record.getMessage().splitlines()[0].partition(" tensors")[0] for record in caplog.records[1:]] == ["L2: 4"]


def test_a_stack_does_not_repeat_it_for_every_run(compose, caplog, monkeypatch):
    monkeypatch.setattr(session.log, "propagate", True)
    configs = [compose("regularizer=l2", f"seed={seed}") for seed in range(2)]
    jobs = [stacks.StackCandidate([], plain(config), RunDirectory.of(config)) for config in configs]
    with caplog.at_level("INFO", logger="wdlab"):
        stacks.train_stack(jobs)
    assert [job.outcome for job in jobs] == ["done", "done"]
    assert not any("L2: " in record.getMessage() for record in caplog.records)


def test_a_strength_that_decays_nothing_is_one_error_before_training(compose):
    frozen = (
        "regularizer=l2",
        "regularizer.strength=0.1",
        "regularizer/over_time=early",
        "regularizer.over_time.epochs=0",
    )
    with pytest.raises(ConfigError, match=r"^regularizer\.\S+: ") as refused:
        session.run(compose(*frozen))
    assert "\n" not in str(refused.value)
