"""The rates at which the rules of ``verdicts`` err, by simulation. The table of ``docs/verdicts.md``.

python -m wdlab.analysis.error_rates
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from wdlab.analysis import verdicts

SEEDS = (3, 5, 10)
DRAWS = 20_000
MARGINS = (0.5, 1.0, 2.0)  # m in standard deviations of a difference

# True quality of the four settings of a group, in standard deviations of a run.
SETTINGS = {"equal": (0, 0, 0, 0), "0, -0.3, -1, -2 sd": (0, -0.3, -1, -2), "0, -1, -2, -3 sd": (0, -1, -2, -3)}

Sampler = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def _exponential(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return exponential values, turned to mean 0 and standard deviation 1."""
    return rng.exponential(size=shape) - 1


def _spikes(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return normal values of which a quarter is 4 standard deviations higher, turned to mean 0 and deviation 1."""
    return (rng.normal(size=shape) + 4 * (rng.random(shape) < 0.25) - 1) / 2


# Differences between two groups, with mean 0 and standard deviation 1.
DIFFERENCES: dict[str, Sampler] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "both groups exponential": lambda rng, shape: (_exponential(rng, shape) - _exponential(rng, shape)) / np.sqrt(2),
    "both groups with spikes": lambda rng, shape: (_spikes(rng, shape) - _spikes(rng, shape)) / np.sqrt(2),
    "one group exponential": _exponential,
    "one group with spikes": _spikes,
}


class Rates(NamedTuple):
    """Shares of the draws, each in [0, 1]; of claims in both directions the worse.

    Attributes:
        coverage: of the intervals that hold the true mean.
        tie: ``reproduced`` for "a is higher" where there is no difference.
        opposite: ``contradicted`` where there is no difference.
        boundary: ``reproduced`` where the difference is just short of what counts.
        power: ``reproduced`` where the difference is twice what counts.
        tie_shown: ``no difference`` where there is none.
    """

    coverage: float
    tie: float
    opposite: float
    boundary: float
    power: float
    tie_shown: float


def rates(sampler: Sampler, seeds: int, margin: float, draws: int = DRAWS) -> Rates:
    """Simulate claims that "a is higher" and that "a is lower", and return the worse rates of their verdicts.

    Args:
        sampler: one of ``DIFFERENCES``.
        seeds: number of seeds of each claim.
        margin: the smallest difference that counts, in standard deviations of a difference.
        draws: number of claims.
    """
    noise = sampler(np.random.default_rng(seeds), (draws, seeds))
    low, high = verdicts.student_interval(noise)

    def shares(verdict: str, truth: float) -> list[float]:
        both = (low + truth, high + truth), (-high + truth, -low + truth)
        judged = ([verdicts.verdict("higher", ends, margin) for ends in zip(*side, strict=True)] for side in both)
        return [side.count(verdict) / draws for side in judged]

    return Rates(
        coverage=float(np.mean((low <= 0) & (high >= 0))),
        tie=max(shares("reproduced", 0.0)),
        opposite=max(shares("contradicted", 0.0)),
        boundary=max(shares("reproduced", margin)),
        power=min(shares("reproduced", 2 * margin)),
        tie_shown=min(shares("no difference", 0.0)),
    )


def row(name: str, seeds: int, margin: float) -> str:
    """Return the line of :func:`table` for a distribution of ``DIFFERENCES``."""
    r = rates(DIFFERENCES[name], seeds, margin)
    values = (r.coverage, r.tie, r.boundary, r.opposite, r.power, r.tie_shown)
    return f"| {name} | {seeds} | {margin:g} | {' | '.join(f'{value:.3f}' for value in values)} |"


def table() -> str:
    """Return the rates in Markdown: a line for each distribution, number of seeds and margin."""
    head = ("differences", "seeds", "m / sd", "coverage", "`reproduced` at a tie", "`reproduced` just short of m")
    head += ("`contradicted` at a tie", "`reproduced` at 2 m", "`no difference` at a tie")
    rows = [row(name, seeds, margin) for name in DIFFERENCES for seeds in SEEDS for margin in MARGINS]
    return "\n".join([f"| {' | '.join(head)} |", "| --- " * len(head) + "|", *rows])


def tuned_errors(means: Sequence[float], seeds: int, by: str, draws: int = DRAWS) -> tuple[float, float]:
    """Return the shares of 95 % intervals that lie wholly above and wholly below the truth, for two alike tuned groups.

    Validation and test score of a run have equal variances, and share half of it.

    Args:
        means: the true quality of each setting, the same in both groups, in standard deviations of a run.
        seeds: number of seeds.
        by: how the settings are chosen by their validation scores: ``all`` takes for all seeds the one with the best
            mean, ``others`` takes for each seed the one with the best mean over the other seeds.
        draws: number of claims.
    """
    rng = np.random.default_rng(seeds)

    def group() -> np.ndarray:
        shape = (draws, len(means), seeds)
        shared = np.array(means)[:, None] + np.sqrt(0.5) * rng.normal(size=shape)
        validation, test = (shared + np.sqrt(0.5) * rng.normal(size=shape) for _ in range(2))
        total = validation.sum(axis=-1, keepdims=True)
        chosen = (total - validation if by == "others" else total + 0 * validation).argmax(axis=1)
        return np.take_along_axis(test, chosen[:, None, :], axis=1)[:, 0]

    low, high = verdicts.student_interval(group() - group())
    return float(np.mean(low > 0)), float(np.mean(high < 0))


def tuned_table() -> str:
    """Return the errors of tuned groups in Markdown."""
    lines = [
        "| settings | seeds | one setting for all seeds: too high, too low | by the other seeds: too high, too low |",
        "| --- | --- | --- | --- |",
    ]
    for name, means in SETTINGS.items():
        for seeds in SEEDS:
            errors = (tuned_errors(means, seeds, by) for by in ("all", "others"))
            cells = " | ".join(", ".join(f"{error:.3f}" for error in pair) for pair in errors)
            lines.append(f"| {name} | {seeds} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"{table()}\n\n{tuned_table()}")
