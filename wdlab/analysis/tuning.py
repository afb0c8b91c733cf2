"""The values of a group of runs that has several settings: one is chosen, or the metric is interpolated between them.

Called by ``claims``. A *setting* is everything in which the runs of a group differ except the seed. The rules are

- ``{highest: val/accuracy}`` or ``{lowest: val/loss}``: one setting for each seed, chosen by the mean of this column
  over the *other* seeds, so that a seed's own luck does not choose. A setting of which another seed's run diverged is
  not chosen.
- ``{at: {sparsity/weights: 0.9}}``: no setting is chosen. The metric is interpolated linearly between neighbouring
  strengths of the same seed, at the largest strength at which the column passes this value.
- ``{within_best: {highest: val/accuracy, within: 0.01}}``: the same where the column is worse by 0.01 than the best
  mean over seeds of any setting in both groups.

A rule may name the column ``along`` which settings are ordered, ``regularizer.strength`` if it does not.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from wdlab.analysis.selection import last_lines, setting_columns, settings
from wdlab.errors import ConfigError

ALONG = "regularizer.strength"


class Tuned(NamedTuple):
    """What a rule found in a group.

    Attributes:
        runs: the name of the chosen run by seed, None where no setting has only runs that ended well; {} if the rule
            interpolates.
        values: the interpolated metric by seed; {} if the rule chooses runs.
        missed: the seeds that never reach the level. Their value is that of the setting that comes nearest.
        beyond: the seeds that are past the level at every strength. Their value is that of the setting next to it.
        settings: number of settings.
        inside: whether the chosen values of ``along`` (or the levels) lie inside the range that was tried.
        chosen: how many seeds chose each value of ``along``; {} if the rule interpolates.
    """

    runs: dict[int, str | None]
    values: dict[int, float]
    missed: tuple[int, ...]
    beyond: tuple[int, ...]
    settings: int
    inside: bool
    chosen: dict[str, int]


def tuned(rows: pd.DataFrame, rule: Mapping[str, Any], metric: str, both: Sequence[pd.DataFrame], where: str) -> Tuned:
    """Apply a rule to a group of runs.

    Args:
        rows: the rows of the group.
        rule: the rule, see the docstring of this module.
        metric: the metric of the claim.
        both: the rows of group a and group b; ``within_best`` measures the best value over both.
        where: the claim, as an error names it.

    Raises:
        ConfigError: for another rule, or if ``rows`` hold several runs of a seed and a value of ``along``.
    """
    check_rule(rule, where)
    along, last = rule.get("along", ALONG), last_lines(rows)
    if along not in last:
        raise ConfigError(f"{where}: the runs do not differ in {along}")
    if "at" in rule or "within_best" in rule:
        return _interpolated(last, rule, metric, [last_lines(part) for part in both], along, where)
    return _chosen(last, rule, along)


def check_rule(rule: Mapping[str, Any], where: str) -> None:
    """Raise a ConfigError if a mapping is no rule of this module."""
    kinds = [key for key in ("highest", "lowest", "at", "within_best") if key in rule]
    inner = rule.get("within_best", {"highest": None, "within": 0.0})
    if len(kinds) != 1 or set(rule) - {*kinds, "along"} or "within" not in inner or len(inner) != 2:
        raise ConfigError(
            f"{where}: choose={dict(rule)}: must be highest, lowest, at, or within_best (highest or lowest, and within)"
        )


def _chosen(last: pd.DataFrame, rule: Mapping[str, Any], along: str) -> Tuned:
    """Choose a setting for each seed by the mean over the other seeds (over itself, if it is the only one)."""
    sign, column = _order(rule)
    last = last.assign(setting=settings(last), quality=sign * last[column])
    table = last.pivot(index="setting", columns="seed", values="quality").fillna(-np.inf)
    names = last.pivot(index="setting", columns="seed", values="run")
    place = last.groupby("setting")[along].first()
    runs: dict[int, str | None] = {}
    chosen = []
    for seed in table:
        others = table.drop(columns=seed) if table.shape[1] > 1 else table
        mean = others.mean(axis=1)
        if mean.max() == -np.inf:
            runs[int(seed)] = None
            continue
        setting = mean.idxmax()
        chosen.append(setting)
        runs[int(seed)] = names.loc[setting, seed]
    inside = bool(chosen) and all(_is_inside(last, setting, along) for setting in set(chosen))
    counts = Counter(f"{place[setting]:g}" for setting in chosen)
    return Tuned(runs, {}, (), (), len(table), inside, dict(counts))


def _is_inside(last: pd.DataFrame, setting: int, along: str) -> bool:
    """Return whether a setting lies between others that have the same values in all columns except ``along``."""
    same = [column for column in setting_columns(last) if column != along]
    own = last[last["setting"] == setting].iloc[0]
    alike = last[(last[same].eq(own[same]) | (last[same].isna() & own[same].isna())).all(axis=1)] if same else last
    return bool(alike[along].min() < own[along] < alike[along].max())


def _interpolated(
    last: pd.DataFrame,
    rule: Mapping[str, Any],
    metric: str,
    both: Sequence[pd.DataFrame],
    along: str,
    where: str,
) -> Tuned:
    """Interpolate the metric of each seed where a column passes a level, at the largest strength at which it does."""
    if last.duplicated(["seed", along]).any():
        raise ConfigError(f"{where}: the group has several runs of a seed at one {along}; it must be one curve")
    if "at" in rule:
        ((column, level),) = rule["at"].items()
        sign = 1
    else:
        sign, column = _order(rule["within_best"])
        best = max(_best_mean(part, sign, column) for part in both)
        sign, level = -sign, -(best - rule["within_best"]["within"])
    values: dict[int, float] = {}
    missed, beyond = [], []
    for seed, part in last.sort_values(along).groupby("seed"):
        part = part.dropna(subset=[column, metric])
        x, y = sign * part[column].to_numpy(), part[metric].to_numpy()
        past = x >= level if "at" in rule else x > level
        passages = np.flatnonzero(~past[:-1] & past[1:])
        if len(passages) and (past[-1] or "at" in rule):
            k = passages[-1]
            values[int(seed)] = float(y[k] + (level - x[k]) / (x[k + 1] - x[k]) * (y[k + 1] - y[k]))
            continue
        never = len(x) == 0 or ("at" in rule and not past.any()) or ("within_best" in rule and past.all())
        (missed if never else beyond).append(int(seed))
        nearest = np.abs(x - level).argmin() if len(x) else None
        values[int(seed)] = math.nan if nearest is None else float(y[nearest if never or "at" in rule else -1])
    inside = not missed and not beyond
    return Tuned({}, values, tuple(missed), tuple(beyond), last[along].nunique(), inside, {})


def _best_mean(last: pd.DataFrame, sign: int, column: str) -> float:
    """Return the largest mean over seeds of ``sign`` times a column, over the settings of which no run diverged."""
    by_setting = (sign * last[column]).groupby(settings(last))
    return float(by_setting.mean()[by_setting.count() == by_setting.size()].max())


def _order(rule: Mapping[str, Any]) -> tuple[int, str]:
    """Return the sign by which a rule orders runs (1 for ``highest``, -1 for ``lowest``), and the rule's column."""
    return (1, rule["highest"]) if "highest" in rule else (-1, rule["lowest"])
