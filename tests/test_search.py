"""Intervals on the command line: their range, their distribution, the order of runs, and what is refused."""

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from wdlab.errors import ConfigError
from wdlab.records.identity import PROJECT
from wdlab.search import MOST_TRIALS, expand

LOG = "optimizer.lr=tag(log,interval(1e-3,1))"


def jobs(*line: str, trials: int | None = None, seed: int = 0) -> list[list[str]]:
    return expand(OverridesParser.create().parse_overrides([*line]), trials, seed)


def texts(interval: str, trials: int = 1024, seed: int = 0) -> list[str]:
    """The values of a single interval."""
    return [job[0].partition("=")[2] for job in jobs(f"key={interval}", trials=trials, seed=seed)]


def values(interval: str, **options) -> np.ndarray:
    return np.array([float(text) for text in texts(interval, **options)])


# -- what an interval stands for


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-3.0, 5.0), (1e-7, 1e3)])
def test_uniform_values_fill_their_interval(low, high):
    shares = (values(f"interval({low},{high})") - low) / (high - low)
    assert shares.min() >= 0 and shares.max() <= 1
    for power in (1, 2, 3):
        assert np.mean(shares**power) == pytest.approx(1 / (power + 1), abs=1e-4)
    middles = (np.arange(1024) + 0.5) / 1024
    assert np.abs(np.sort(shares) - middles).max() < 0.501 / 1024  # one value in every 1024th


@pytest.mark.parametrize("low, high", [(1e-3, 1.0), (1e-9, 1e9), (2.0, 3.0)])
def test_the_logarithms_of_values_tagged_log_are_uniform(low, high):
    found = values(f"tag(log,interval({low},{high}))")
    shares = np.log(found / low) / math.log(high / low)
    for power in (1, 2, 3):
        assert np.mean(shares**power) == pytest.approx(1 / (power + 1), abs=1e-4)
    assert np.mean(found) == pytest.approx((high - low) / math.log(high / low), rel=0.02)


def test_whole_numbers_are_equally_frequent_and_include_both_ends():
    found = texts("int(interval(-1,6))")
    assert {text: found.count(text) for text in found} == {str(number): 128 for number in range(-1, 7)}


@pytest.mark.parametrize("form", ["int(tag(log,interval(1,63)))", "tag(log,int(interval(1,63)))"])
def test_whole_numbers_tagged_log_are_as_frequent_in_every_octave(form):
    found = np.array([int(text) for text in texts(form, trials=768)])
    octaves = np.bincount(np.log2(found).astype(int))
    assert found.min() == 1 and found.max() == 63 and len(octaves) == 6
    assert np.abs(octaves - 128).max() <= 1


def test_the_ends_of_whole_numbers_can_be_written_as_any_number():
    assert texts("int(interval(start=1e1,end=2_0.0))", 8) == texts("int(interval(10,20))", 8)


def test_several_intervals_fill_their_box():
    """Every cell of a grid of 4 x 4 x 4 has its share of the points: the distance to the mean is at most a point."""
    points = jobs("a=interval(0,4)", "b=interval(0,4)", "c=interval(0,4)", trials=1024)
    cells = [tuple(min(3, int(float(text[2:]))) for text in point) for point in points]
    counts = [cells.count(cell) for cell in set(cells)]
    assert len(counts) == 64 and max(counts) - min(counts) <= 2


def test_a_value_is_a_short_text_that_reads_as_itself_and_stays_in_its_interval():
    for interval in ("tag(log,interval(1e-12,1e12))", "interval(0.12345674,0.12345676)", "interval(-1e300,1e300)"):
        found = values(interval, trials=64)
        assert [repr(float(value)) for value in found] == texts(interval, trials=64)
    low, high = 0.12345674, 0.12345676  # its ends have more digits than the values
    assert set(values(f"interval({low},{high})", trials=64)) <= {low, high}
    digits = {len(f"{value:e}".partition("e")[0].rstrip("0")) for value in values("interval(1,2)")}
    assert max(digits) == 7  # six digits and the point


def test_whole_numbers_as_text_have_no_point_and_others_do():
    assert all(text.lstrip("-").isdigit() for text in texts("int(interval(-1000,1000))", trials=16))
    assert not any(text.isdigit() for text in texts("interval(0,1e9)", trials=64))


# -- which runs


def test_more_trials_extend_the_same_runs():
    line = (LOG, "seed=0,1", "b=int(interval(0,99))")
    whole = jobs(*line, trials=64)
    for trials in (1, 2, 3, 5, 16, 17, 33, 64):
        assert jobs(*line, trials=trials) == whole[: 2 * trials]


def test_the_runs_are_a_function_of_the_line_and_the_seed():
    first = jobs(LOG, "b=interval(0,1)", trials=7, seed=3)
    np.random.seed(5)  # a state that must not matter
    assert jobs(LOG, "b=interval(0,1)", trials=7, seed=3) == first
    seeds = {tuple(map(tuple, jobs(LOG, "b=interval(0,1)", trials=7, seed=seed))) for seed in range(20)}
    assert len(seeds) == 20


def test_the_runs_are_these():
    """A change here, such as by another scipy, means that a search that was begun does not end with the same runs."""
    assert jobs(LOG, "b=interval(0,1)", "model.width=int(interval(1,64))", trials=3) == [
        ["optimizer.lr=0.0169765", "b=0.96412", "model.width=55"],
        ["optimizer.lr=0.223883", "b=0.173779", "model.width=19"],
        ["optimizer.lr=0.137099", "b=0.585692", "model.width=41"],
    ]


def test_the_grid_does_not_change_the_values():
    alone = jobs(LOG, "b=interval(0,1)", trials=5)
    crossed = jobs("seed=0,1,2", LOG, "regularizer=l2", "b=interval(0,1)", "model=mlp,resnet8", trials=5)
    assert len(crossed) == 5 * 3 * 2
    assert [[job[1], job[3]] for job in crossed[::6]] == alone  # each trial has a whole grid
    assert [job[0] for job in crossed[:6]] == [f"seed={seed}" for seed in (0, 0, 1, 1, 2, 2)]
    assert all(job[2] == "regularizer=l2" for job in crossed)


def test_the_last_override_of_a_key_counts():
    assert jobs(LOG, "optimizer.lr=0.1,0.2") == [["optimizer.lr=0.1"], ["optimizer.lr=0.2"]]
    assert jobs("optimizer.lr=0.1,0.2", LOG, trials=4) == jobs(LOG, trials=4)
    narrower = "optimizer.lr=interval(0.1,0.2)"
    assert jobs(LOG, "seed=1", narrower, trials=4) == jobs(narrower, "seed=1", trials=4)


def test_without_an_interval_there_is_the_grid():
    assert jobs("a=1,2", "b=3") == [["a=1", "b=3"], ["a=2", "b=3"]]
    assert jobs() == [[]]


def test_any_number_of_trials_and_of_intervals_is_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for trials in (1, 3, 100):
            assert len(jobs(*(f"a{number}=interval(0,1)" for number in range(100)), trials=trials)) == trials


def test_no_torch_is_imported():
    code = "import sys, wdlab.search; sys.exit('torch' in sys.modules or 'scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0


# -- what is refused


@pytest.mark.parametrize(
    "line, trials, message",
    [
        ("a=interval(0,1)", None, "a=interval(0,1): an interval needs a number of trials, such as hydra.sweeper."),
        ("a=0,1", 4, "hydra.sweeper.trials=4: no key has an interval, such as "),
        ("+experiment=e", 4, "hydra.sweeper.trials=4: no key has an interval in +experiment=e, such as "),
        ("a=interval(0,1)", 0, f"hydra.sweeper.trials=0: must be a whole number from 1 to {MOST_TRIALS}"),
        ("a=interval(0,1)", 1.5, "hydra.sweeper.trials=1.5: must be a whole number"),
        ("a=interval(0,1)", True, "hydra.sweeper.trials=True: must be a whole number"),
        ("a=interval(0,1)", "many", "hydra.sweeper.trials=many: must be a whole number"),
        ("a=interval(0,1)", 10**40, "hydra.sweeper.trials=1000"),
        ("a=1", 0, "hydra.sweeper.trials=0: must be a whole number"),
        ("a=tag(log,interval(0,1))", 4, "a=tag(log,interval(0,1)): an interval with the tag log must be > 0"),
        ("a=tag(log,int(interval(0,9)))", 4, "a=tag(log,int(interval(0,9))): an interval with the tag log must"),
        ("a=interval(1,1)", 4, "a=interval(1,1): the interval must be from a finite number to a larger one"),
        ("a=interval(2,1)", 4, "a=interval(2,1): the interval must be"),
        ("a=int(interval(3,3))", 4, "a=int(interval(3,3)): the interval must be"),
        ("a=int(interval(8.5,9.4))", 4, "a=int(interval(8.5,9.4)): the ends of an interval in int(...) must be whole"),
        ("a=int(tag(log,interval(1e-3,1)))", 4, "a=int(tag(log,interval(1e-3,1))): the ends of an interval in int("),
        ("a=tag(log,int(interval(1,9.5)))", 4, "a=tag(log,int(interval(1,9.5))): the ends of an interval in int("),
        ("a=interval(0,inf)", 4, "a=interval(0,inf): the interval must be"),
        ("a=interval(nan,1)", 4, "a=interval(nan,1): the interval must be"),
        ("a=tag(logit,interval(0,1))", 4, "a=tag(logit,interval(0,1)): unknown tag logit; allowed: log"),
        ("a=tag(log,q,interval(1,2))", 4, "a=tag(log,q,interval(1,2)): unknown tag q; allowed: log"),
        ("a=interval(0,1),2", 4, "a=interval(0,1),2: an interval cannot be one of several values; give "),
    ],
)
def test_what_cannot_be_meant_is_one_line(line, trials, message):
    with pytest.raises(ConfigError) as refused:
        jobs(line, trials=trials)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("seed", [-1, 0.5, None, True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ConfigError, match=rf"^hydra.sweeper.search_seed={seed}: must be a whole number >= 0$"):
        jobs(LOG, trials=4, seed=seed)
