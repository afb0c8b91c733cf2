"""Quasi-random search: the runs that a command line with intervals, such as ``lr=interval(0,1)``, stands for.

The values of the intervals are points of a scrambled Sobol sequence, which fill a box more evenly than random points.
They depend on the intervals and on the seed alone, so the same command stands for the same runs, and a command with
more trials stands for these and further ones. Imports no torch. Used by the sweeper of ``-m``.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override

from wdlab.errors import ConfigError

MOST_TRIALS = 2**20
TAGS = {"log"}


def expand(overrides: Sequence[Override], trials: int | None = None, seed: int = 0) -> list[list[str]]:
    """Return the overrides of every run: each trial, combined with each point of the grid of the listed values.

    ``interval(a,b)`` stands for uniform numbers from a to b, ``tag(log,interval(a,b))`` for numbers whose logarithm is
    uniform, both with 6 significant digits. ``int(...)`` around either, or around the interval in ``tag``, stands for
    whole numbers from a to b, both included. Each interval is a dimension of the sequence, in the order of
    ``overrides``. As in Hydra's basic sweeper, the last of several overrides of one key counts.

    Args:
        overrides: parsed overrides. Those that are no sweep are part of every run.
        trials: the number of points of the sequence; None if no override is an interval. The first runs are the same
            for any larger number. A power of two gives the most even points.
        seed: the seed of the scrambling, a whole number >= 0.

    Returns:
        A list of ``key=value`` for every run. The grid of the first trial comes first.

    Raises:
        ConfigError: for an interval without a number of trials, and for the reverse; for a number of trials or a seed
            that is no whole number or out of range; for an interval that is empty, infinite, one of several values of
            its key, tagged with another word than ``log``, or tagged with ``log`` and not positive; for one in ``int``
            of which an end is no whole number.
    """
    last = {override.get_key_element(): override for override in overrides}
    intervals = {key: override for key, override in last.items() if override.is_interval_sweep()}
    for override in last.values():
        _check_interval(override)
    _check_trials(intervals, trials, seed, last.get("+experiment"))
    choices = {key: _choices(key, override) for key, override in last.items() if key not in intervals}
    jobs = []
    for point in _points(len(intervals), trials or 1, seed):
        drawn = {
            key: [f"{key}={_value(override.value(), u)}"]
            for (key, override), u in zip(intervals.items(), point, strict=True)
        }
        jobs += [list(job) for job in itertools.product(*({**choices, **drawn}[key] for key in last))]
    return jobs


def _choices(key: str, override: Override) -> list[str]:
    """Return ``key=value`` for every value of an override that is no interval."""
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [f"{key}={override.get_value_element_as_str()}"]


def _points(dimensions: int, trials: int, seed: int) -> Sequence[Sequence[float]]:
    """Return the first points of the sequence, each with ``dimensions`` numbers in [0, 1)."""
    if dimensions == 0:
        return [()]
    from scipy.stats import qmc  # here, since its import takes half a second

    # a power of two: for another number of points scipy warns that they are not balanced
    return qmc.Sobol(dimensions, rng=seed).random_base2((trials - 1).bit_length())[:trials].tolist()


def _value(interval: IntervalSweep, u: float) -> str:
    """Return the text of the value of an interval that a number in [0, 1) stands for.

    The text has 6 digits, so that a last bit in which the logarithms of two machines differ does not change the run.
    """
    low, high = interval.start, interval.end
    whole = isinstance(low, int)
    top = high + 1 if whole else high
    scale, inverse = (math.log, math.exp) if "log" in interval.tags else (float, float)
    value = inverse((1 - u) * scale(low) + u * scale(top))
    value = math.floor(value) if whole else float(f"{value:.5e}")
    return repr(min(max(value, low), high))  # rounding can lead out of the interval


def _check_interval(override: Override) -> None:
    """Check the value of an override if it is an interval, or a list of values of which one is an interval.

    Raises:
        ConfigError: as :func:`expand`.
    """
    given, interval = override.input_line, override.value()
    if isinstance(interval, ChoiceSweep) and any(isinstance(value, IntervalSweep) for value in interval.list):
        raise ConfigError(f"{given}: an interval cannot be one of several values; give key=interval(a,b)")
    if not isinstance(interval, IntervalSweep):
        return
    if isinstance(interval.start, int):  # Hydra's int() has cut the ends to whole numbers
        exact = OverridesParser.create().parse_override(given.replace("int(", "float(")).value()
        if (exact.start, exact.end) != (interval.start, interval.end):
            raise ConfigError(f"{given}: the ends of an interval in int(...) must be whole numbers")
    if unknown := sorted(interval.tags - TAGS):
        raise ConfigError(f"{given}: unknown tag {unknown[0]}; allowed: {', '.join(TAGS)}")
    if not -math.inf < interval.start < interval.end < math.inf:
        raise ConfigError(f"{given}: the interval must be from a finite number to a larger one")
    if "log" in interval.tags and interval.start <= 0:
        raise ConfigError(f"{given}: an interval with the tag log must be > 0")


def _check_trials(intervals: dict[str, Override], trials: Any, seed: Any, experiment: Override | None) -> None:
    """Check the number of trials and the seed. An error for the lack of an interval names the experiment.

    Raises:
        ConfigError: as :func:`expand`.
    """
    if trials is not None and not (type(trials) is int and 1 <= trials <= MOST_TRIALS):
        raise ConfigError(f"hydra.sweeper.trials={trials}: must be a whole number from 1 to {MOST_TRIALS}")
    if not (type(seed) is int and seed >= 0):
        raise ConfigError(f"hydra.sweeper.search_seed={seed}: must be a whole number >= 0")
    if trials is None and intervals:
        line = next(iter(intervals.values())).input_line
        raise ConfigError(f"{line}: an interval needs a number of trials, such as hydra.sweeper.trials=16")
    if trials is not None and not intervals:
        where = f" in {experiment.input_line}" if experiment else ""
        raise ConfigError(
            f"hydra.sweeper.trials={trials}: no key has an interval{where}, "
            "such as optimizer.lr=tag(log,interval(1e-3,1))"
        )
