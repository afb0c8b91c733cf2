"""Claims about runs, judged over seeds. Called by ``figures``; the claims are in ``configs/figure``.

A claim compares a statistic of each run between two groups of runs, or between a group and a number. Pairs share a
seed. The verdict follows from the 95 % Student interval of the mean paired difference and from the smallest difference
that counts, by the rules of :mod:`wdlab.analysis.verdicts`. Losses, norms and ratios are compared by the difference of
their logarithms (``difference: of logarithms``).

No seed is left out. The statistic of a run that diverged is the claim's ``worst`` value, in both groups, since to
diverge is a property of a method; and so is the value of a group that no setting can be chosen for. A level that is
never reached cannot favour the claim: in group a it counts as the worst value, in group b as the value, among all
settings of this seed, that is best for b. Where b is only known to be past a level, and where both runs of a seed
diverged, the claim is at most ``inconclusive``.

A group that was tuned contains several runs per seed. The claim then has a rule of :mod:`wdlab.analysis.tuning` under
``choose`` (for both groups), ``choose_a`` or ``choose_b``.

A verdict is exploratory with fewer than five seeds, and if the claim has ``changed`` for this scale or panel: the
reason why its wording, its statistic or its runs were chosen after runs had been seen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from wdlab.analysis import tuning, verdicts
from wdlab.analysis.selection import select
from wdlab.analysis.sentences import DOUBTS, OF_THE_GRID, size
from wdlab.analysis.statistics import NEED_A_GROUP_B, STATISTICS, Curve, median_curve, worst_deviation
from wdlab.errors import ConfigError

REQUIRED = (
    "id",
    "statement",
    "panels",
    "metric",
    "statistic",
    "a",
    "b",
    "kind",
    "smallest_difference",
    "reason",
    "worst",
)
OPTIONAL = ("scales", "of", "difference", "unit", "choose", "choose_a", "choose_b", "better", "changed")
UNITS = ("points", "nats", "decades", OF_THE_GRID)  # points, and shares of a grid, are told in hundredths
OF_LOGARITHMS = "of logarithms"


@dataclass
class _Side:
    """The values of a group.

    Attributes:
        values: the statistic by seed; NaN where there is none.
        diverged: the seeds whose run diverged.
        tuned: what tuning found; None if the group was not tuned.
    """

    values: dict[int, float]
    diverged: set[int] = field(default_factory=set)
    tuned: tuning.Tuned | None = None

    @property
    def missing(self) -> set[int]:
        """The seeds without a value."""
        return {seed for seed, value in self.values.items() if np.isnan(value)}

    @property
    def extremes(self) -> Mapping[int, tuple[float, float]]:
        """Least and largest value of any setting, for each seed that never reaches the level of a rule."""
        return self.tuned.extremes if self.tuned else {}


def check(claim: Mapping[str, Any]) -> None:
    """Raise a ConfigError if a declared claim lacks a key, has an unknown one, or a value that is not allowed."""
    where = f"claim {claim.get('id', claim)}"
    missing, unknown = set(REQUIRED) - set(claim), set(claim) - {*REQUIRED, *OPTIONAL}
    if missing or unknown:
        key = min(missing or unknown)
        raise ConfigError(f"{where}: key {key!r} is {'missing' if missing else 'unknown'}")
    allowed = {
        "kind": (claim["kind"], verdicts.KINDS),
        "statistic": (claim["statistic"]["name"], STATISTICS),
        "difference": (claim.get("difference"), (None, OF_LOGARITHMS)),
        "unit": (claim.get("unit"), (None, *UNITS)),
        "better": (claim.get("better"), ("higher", "lower") if claim["kind"] == "not_worse" else (None,)),
    }
    for key, (word, known) in allowed.items():
        if word not in known:
            raise ConfigError(f"{where}: {key}={word}: must be one of {', '.join(map(str, known))}")
    if not claim["smallest_difference"] > 0:
        raise ConfigError(f"{where}: smallest_difference={claim['smallest_difference']}: must be > 0")
    if claim["statistic"]["name"] in NEED_A_GROUP_B and isinstance(claim["b"], int | float):
        raise ConfigError(f"{where}: b={claim['b']}: {claim['statistic']['name']} needs a group of runs")
    for key in ("choose", "choose_a", "choose_b"):
        if key in claim:
            tuning.check_rule(claim[key], where)


def judge(
    claim: Mapping[str, Any], table: pd.DataFrame, scale: str = "", over: str = "seeds", panel: str = ""
) -> dict[str, Any]:
    """Return the verdict on one claim.

    Args:
        claim: the claim, with the keys ``REQUIRED`` and some of ``OPTIONAL``. ``a`` and ``b`` are column filters
            (``{regularizer: l2}``, ``{optimizer.p: [0.5, 0.8]}``); ``b`` may be a number. ``statistic`` has a ``name``
            from ``STATISTICS`` and that function's options.
        table: the rows of the runs that the claim is about, as ``analysis.load`` returns them.
        scale: the scale of the runs, to find the reason of a change under ``changed``.
        over: what the column ``seed`` numbers. Seeds are a sample, about whose mean an interval is given. Anything else
            is a list of cases, in the worst of which the claim must hold: the interval is their range.
        panel: the panel of the runs, to find the reason of a change under ``changed``.

    Returns:
        The claim, with these keys added: ``n`` (number of seeds), ``exploratory``, ``a_mean`` and ``b_mean`` (geometric
        means for a difference of logarithms), ``differences`` by seed, ``mean_difference``, ``interval``, ``p_value``
        (None over cases) and ``verdict``; with a rule for tuned groups also ``tuning``; ``doubts``, if the numbers
        would decide the claim but do not; and ``note``, if there are remarks for the reader.

    Raises:
        ConfigError: for a claim that ``check`` refuses, a column that the table lacks, several runs of a seed without
            ``choose``, or a logarithm of a value that is not positive.
    """
    check(claim)
    filters = {"a": claim["a"]} | ({} if isinstance(claim["b"], int | float) else {"b": claim["b"]})
    groups = {side: select(table, where) for side, where in filters.items()}
    notes: list[str] = []
    sides = _sides(claim, groups, notes)
    seeds = sorted(set.intersection(*(set(side.values) for side in sides.values())))
    a, b = (_numbers(claim, side, sides, seeds) for side in "ab")
    outcome = _outcome(claim, a, b, over)
    outcome["exploratory"] = over == "seeds" and len(seeds) < verdicts.EXPLORATORY_BELOW_SEEDS
    for place in {scale, panel} & set(claim.get("changed", {})):
        outcome["exploratory"] = True
        notes.append(f"changed after runs were seen: {claim['changed'][place]}")
    alone = len(set.union(*(set(side.values) for side in sides.values()))) - len(seeds)
    if alone and over == "seeds":
        notes.append(f"{alone} seeds without a pair are left out")
    _note_on_sides(sides, notes)
    if doubts := _doubts(outcome["verdict"], sides):
        outcome |= {"verdict": "inconclusive", "doubts": doubts}
        notes += [DOUBTS[kind].format(of=of) for kind, of in doubts.items()]
    told = {side: _told(of.tuned) for side, of in sides.items() if of.tuned}
    judged = dict(claim) | outcome | ({"tuning": told} if told else {})
    if notes:
        judged["note"] = "; ".join(dict.fromkeys(notes))
    return judged


def _sides(claim: Mapping[str, Any], groups: Mapping[str, pd.DataFrame], notes: list[str]) -> dict[str, _Side]:
    """Return the values of each group by seed. A statistic of group a may look at the run of group b."""
    where = f"claim {claim['id']}"
    options = dict(claim["statistic"])
    statistic = STATISTICS[options.pop("name")]
    sides: dict[str, _Side] = {}
    curves: dict[str, dict[int, Curve]] = {}
    for side, rows in groups.items():
        rule = claim.get(f"choose_{side}", claim.get("choose"))
        found = tuning.tuned(rows, rule, claim["metric"], list(groups.values()), where) if rule else None
        sides[side] = _Side(dict.fromkeys(sorted(map(int, rows["seed"].unique())), math.nan), tuned=found)
        if found and found.values:
            sides[side].values = dict(found.values)
        else:
            curves[side] = _curves(rows[rows["run"].isin(found.runs.values())] if found else rows, claim, side, notes)
    for side, of_seed in curves.items():
        for seed, curve in of_seed.items():
            other = curves.get("b" if side == "a" else "a", {}).get(seed)
            if curve.diverged:
                sides[side].diverged.add(seed)
            if other is not None and other.diverged:
                other = None
            value = curve.worst if curve.diverged else statistic(curve, other, **options)
            if not np.isfinite(value):
                notes.append(f"the statistic of a run of {side} is not finite and counts as the worst value")
            sides[side].values[seed] = value if np.isfinite(value) else curve.worst
    if statistic is worst_deviation and curves["a"]:
        values = [worst_deviation(median_curve(list(curves["a"].values())), None, **options)]
        of_median, *of_seeds = (size(claim, value) for value in (*values, *sides["a"].values.values()))
        notes.append(f"the median over seeds deviates by {of_median}, single seeds by {', '.join(of_seeds)}")
    return sides


def _curves(rows: pd.DataFrame, claim: Mapping[str, Any], side: str, notes: list[str]) -> dict[int, Curve]:
    """Return the curve of each seed in group ``side`` (a or b).

    Raises:
        ConfigError: if a seed has several runs, or the rows lack the metric.
    """
    if claim["metric"] not in rows:
        raise ConfigError(f"claim {claim['id']}: metric {claim['metric']} was not measured")
    curves = {}
    for seed, part in rows.groupby("seed"):
        count = part["run"].nunique()
        if count != 1:
            raise ConfigError(f"claim {claim['id']}: {count} runs of seed {seed} in a group; choose one by choose")
        part = part.sort_values("step", kind="stable").drop_duplicates("step")
        curves[int(seed)] = Curve(part, claim["metric"], float(claim["worst"]), side == "a", notes)
    return curves


def _numbers(claim: Mapping[str, Any], name: str, sides: Mapping[str, _Side], seeds: Sequence[int]) -> np.ndarray:
    """Return a group's values in the order of the seeds, or ``b`` if it is a number.

    The worst value stands for a missing one; in group b, if a level is never reached, the best value of all settings.
    """
    if name not in sides:
        return np.full(len(seeds), float(claim["b"]))
    side = sides[name]
    least_is_best = claim["kind"] == "lower" or claim.get("better") == "lower"
    stand_in = {seed: ends[0 if least_is_best else 1] for seed, ends in side.extremes.items()} if name == "b" else {}
    values = (
        stand_in.get(seed, float(claim["worst"])) if seed in side.missing else side.values[seed] for seed in seeds
    )
    return np.array([value if np.isfinite(value) else float(claim["worst"]) for value in values], dtype=float)


def _outcome(claim: Mapping[str, Any], a: np.ndarray, b: np.ndarray, over: str) -> dict[str, Any]:
    """Return the numbers and the verdict for the values of both groups, in the order of the seeds."""
    logarithms = claim.get("difference") == OF_LOGARITHMS
    if logarithms and min([*a, *b], default=1.0) <= 0:
        raise ConfigError(f"claim {claim['id']}: a difference of logarithms of a value that is not positive")
    differences = np.log(a) - np.log(b) if logarithms else a - b
    count, kind, smallest = len(differences), claim["kind"], claim["smallest_difference"]
    interval, p_value, verdict = None, None, "inconclusive"
    turn = -1 if claim.get("better") == "lower" else 1
    if over != "seeds" and count:
        interval = (float(differences.min()), float(differences.max()))
    elif count >= 2:
        low, high = verdicts.student_interval(differences)
        interval = (float(low), float(high))
        p_value = verdicts.p_value(kind, turn * differences, smallest)
    if interval and (count >= verdicts.LEAST_SEEDS or over != "seeds"):
        verdict = verdicts.verdict(kind, tuple(sorted(turn * end for end in interval)), smallest)
    mean = (lambda v: float(np.exp(np.log(v).mean()))) if logarithms else (lambda v: float(v.mean()))
    return {
        "n": count,
        "a_mean": mean(a) if count else None,
        "b_mean": mean(b) if count else None,
        "differences": differences.tolist(),
        "mean_difference": float(differences.mean()) if count else None,
        "interval": list(interval) if interval else None,
        "p_value": p_value,
        "verdict": verdict,
    }


def _doubts(verdict: str, sides: Mapping[str, _Side]) -> dict[str, str | int]:
    """Return why two groups cannot have a verdict, whatever their numbers say: keys of ``DOUBTS``, and of what."""
    doubts: dict[str, str | int] = {}
    if "b" in sides and verdict in ("reproduced", "direction only", "no difference"):
        of_b = sides["b"]
        if of_b.missing - set(of_b.extremes):
            doubts["ended"] = "b"
        if of_b.tuned and of_b.tuned.early + of_b.tuned.late:
            doubts["beyond"] = "b"
        if both := set.intersection(*(side.diverged | side.missing for side in sides.values())):
            doubts["lost"] = len(both)
    if "b" in sides and not doubts and verdict in ("no difference", "contradicted"):
        doubts |= {"beyond": "a"} if _ends_outside(sides["a"].tuned) else {}
    return doubts


def _ends_outside(tuned: tuning.Tuned | None) -> bool:
    """Return True if a level lies outside the settings of a group in some seeds, which then count with a bound."""
    return bool(tuned and (tuned.early or tuned.late or tuned.extremes))


def _note_on_sides(sides: Mapping[str, _Side], notes: list[str]) -> None:
    """Append remarks on diverged runs, missing values and levels that are not passed."""
    for name, side in sides.items():
        tuned, of = side.tuned, f"of {len(side.values)} seeds of {name}"
        best = "the worst value" if name == "a" else "the best value of all settings"
        kinds = (
            (len(side.diverged), f"{of} diverged and count as the worst value"),
            (tuned.diverged if tuned else 0, f"runs of the settings of {name} diverged"),
            (len(side.missing - set(side.extremes)), f"{of} have no value and count as the worst value"),
            (len(side.extremes), f"{of} never reach the level and count with {best}"),
            (len(tuned.early) if tuned else 0, f"{of} are past the level at every strength and count with the first"),
            (len(tuned.late) if tuned else 0, f"{of} reach the level beyond the last strength and count with that"),
        )
        notes += [f"{count} {text}" for count, text in kinds if count]


def _told(tuned: tuning.Tuned) -> dict[str, Any]:
    """Return what the verdict file tells of a tuned group."""
    chosen = {} if tuned.chosen is None else {"chosen": tuned.chosen}
    grid = {"grid": True} if tuned.grid else {}
    grid |= {"over": tuned.over} if tuned.over else {}
    grid |= {"mean": True} if tuned.mean else {}
    ends = {"early": len(tuned.early), "late": len(tuned.late), "never": len(tuned.extremes)}
    return {"settings": tuned.settings, "inside": tuned.inside} | chosen | grid | {k: n for k, n in ends.items() if n}
