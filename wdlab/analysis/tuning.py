"""The values of a group of runs that has several settings: one is chosen, or the metric is interpolated between them.

Called by ``claims``. A *setting* is everything in which the runs of a group differ except the seed. The rules are

- ``{highest: val/accuracy}`` or ``{lowest: val/loss}``: the setting with the best mean of this column over the seeds,
  one for all seeds. (A choice of its own for each seed, by that seed or by the others, makes intervals too short, see
  ``docs/verdicts.md``.) A setting of which a run diverged is not chosen.
- ``{at: {sparsity/weights: 0.9}}``: no setting is chosen. The metric is interpolated linearly between neighbouring
  strengths of the same seed, at the largest strength at which the column passes this value.
- ``{within_best: {highest: val/accuracy, within: 0.01}}``: the same where the column is worse by 0.01 than the best
  mean over seeds of any setting in both groups.
- ``{lost: {highest: test/accuracy, to: 0.1, share: 0.5}}``: no setting is chosen. The metric, which must be positive,
  is interpolated by its logarithm, at the largest strength at which the column has lost this share of the way from the
  best mean over seeds of the group's own settings to the value ``to`` of chance, which a run that diverged has. With
  the strength as the metric, it is the strength at which half of the score is lost.
- ``{decades: {from: {lost: ...}, to: {lost: ...}}}``: the same at two places. The value of a seed is the logarithm to
  base 10 of the second over the first: with the strength as the metric, the decades of strength between them.
- ``{share_within: {highest: test/accuracy, within: 0.01}}``: no setting is chosen. The value of a seed is the share of
  settings whose column is at most 0.01 worse than the best mean over seeds of any setting of the group.
- ``{slope_of_best: {lowest: val/loss, over: optimizer.lr}}``: no setting is chosen. The value of a seed is the slope of
  the logarithm of the best strength over the logarithm of another setting, see :mod:`wdlab.analysis.grids`.

- ``{rank_correlation: {between: [sharpness/trace, gap], given: train/loss, within: [dataset.label_noise]}}``: no
  setting is chosen. The value of a seed is Kendall's tau of two columns over its settings, at a fixed third column,
  over pairs within a cell (``given`` and ``within`` may be left out), see :mod:`wdlab.analysis.correlation`. With
  ``either_way: true`` it has the sign that makes its mean over seeds positive.
- ``{mean_of_settings: 2}``: no setting is chosen. The value of a seed is the mean of the metric over its settings, of
  which there are two. It is what half of the gain of one method over another leaves.

A rule may name the column ``along`` which settings are ordered, ``regularizer.strength`` if it does not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from wdlab.analysis import correlation, grids
from wdlab.analysis.selection import last_lines, setting_columns, settings
from wdlab.errors import ConfigError

ALONG = "regularizer.strength"


@dataclass
class Tuned:
    """The result of a rule for one group of runs.

    Attributes:
        settings: number of settings.
        diverged: number of runs that diverged.
        runs: the name of the chosen run by seed; {} if the rule interpolates, or if no setting has only runs that
            ended well.
        chosen: the value of ``along`` in the chosen setting; None if there is none.
        values: the interpolated metric by seed, NaN if the level is never reached; {} if the rule chooses a setting.
        extremes: least and largest value of the metric over the settings, for each seed that never reaches the level.
        early: the seeds that are past the level at every strength. Their value is that of the first strength.
        late: the seeds that reach the level only beyond the last strength. Their value is that of the last strength.
        inside: whether the chosen setting lies, or all levels lie, inside the range of settings.
        grid: whether the values are of a whole grid of settings. Then ``inside`` is about the setting with the best
            mean; for slopes, about that of each column of the grid.
        over: for slopes, the setting over which they are fitted and its values; else "".
        mean: whether the values are means over the settings.
    """

    settings: int
    diverged: int
    runs: dict[int, str] = field(default_factory=dict)
    chosen: float | None = None
    values: dict[int, float] = field(default_factory=dict)
    extremes: dict[int, tuple[float, float]] = field(default_factory=dict)
    early: list[int] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    inside: bool = False
    grid: bool = False
    over: str = ""
    mean: bool = False


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
    if "rank_correlation" in rule:
        return _correlated(last, rule["rank_correlation"], metric, where)
    if "mean_of_settings" in rule:
        return _mean_of_settings(last, rule["mean_of_settings"], metric, where)
    if along not in last:
        raise ConfigError(f"{where}: the runs do not differ in {along}")
    if "decades" in rule:
        ends = (tuned(rows, rule["decades"][end] | {"along": along}, metric, both, where) for end in ("from", "to"))
        return _decades(*ends)
    last = last.assign(setting=settings(last))
    found = Tuned(last["setting"].nunique(), int((~np.isfinite(last[metric])).sum()))
    if "share_within" in rule or "slope_of_best" in rule:
        _measure_grid(found, last, rule, along)
    elif any(key in rule for key in ("at", "within_best", "lost")):
        _interpolate(found, last, rule, metric, [last_lines(part) for part in both], along, where)
    else:
        _choose(found, last, rule, along)
    return found


def check_rule(rule: Mapping[str, Any], where: str) -> None:
    """Raise a ConfigError if a mapping is no rule of this module."""
    if set(rule) == {"rank_correlation"}:
        inner = rule["rank_correlation"]
        known = {"between", "given", "within", "either_way"}
        is_known = isinstance(inner, Mapping) and {"between"} <= set(inner) <= known
        if is_known and len(inner["between"]) == 2:
            return
    if set(rule) == {"mean_of_settings"} and isinstance(rule["mean_of_settings"], int):
        return
    inner_keys = {
        "within_best": {"within"},
        "share_within": {"within"},
        "slope_of_best": {"over"},
        "lost": {"to", "share"},
    }
    kinds = [key for key in ("highest", "lowest", "at", "decades", *inner_keys) if key in rule]
    known = len(kinds) == 1 and not set(rule) - {*kinds, "along"}
    if known and kinds[0] in inner_keys:
        inner = set(rule[kinds[0]])
        known = inner in ({"highest"} | inner_keys[kinds[0]], {"lowest"} | inner_keys[kinds[0]])
    if known and kinds[0] == "decades":
        known = set(rule["decades"]) == {"from", "to"} and all(set(end) == {"lost"} for end in rule["decades"].values())
        for end in rule["decades"].values() if known else ():
            check_rule(end, where)
    if not known:
        raise ConfigError(
            f"{where}: choose={dict(rule)}: must be highest, lowest, at, or within_best, share_within (each highest or "
            "lowest, and within), lost (highest or lowest, to, and share), decades (from and to, each of them lost), "
            "slope_of_best (highest or lowest, and over), rank_correlation (between, given, within, either_way) or "
            "mean_of_settings (their number)"
        )


def _correlated(last: pd.DataFrame, rule: Mapping[str, Any], metric: str, where: str) -> Tuned:
    """Return the rank correlation over the settings of each seed.

    Raises:
        ConfigError: if the rule names a column that the rows lack.
    """
    named = (*rule["between"], *rule.get("within", ()), *([rule["given"]] if "given" in rule else []))
    if unknown := [column for column in named if column not in last]:
        raise ConfigError(f"{where}: rank_correlation: {unknown[0]} was not measured")
    diverged = int((~np.isfinite(last[metric])).sum())
    values = correlation.of_seeds(last, rule)
    return Tuned(settings(last).nunique(), diverged, values=values, inside=True, grid=True)


def _mean_of_settings(last: pd.DataFrame, count: int, metric: str, where: str) -> Tuned:
    """Return the mean of the metric over the settings of each seed; NaN if a run diverged.

    Raises:
        ConfigError: if a seed does not have one run in each of ``count`` settings.
    """
    numbers = settings(last)
    of_seed = last.assign(setting=numbers).groupby("seed")
    if numbers.nunique() != count or (of_seed["setting"].nunique() != count).any() or (of_seed.size() != count).any():
        raise ConfigError(f"{where}: mean_of_settings={count}: each seed must have one run in each of {count} settings")
    values = last[metric].where(np.isfinite(last[metric])).groupby(last["seed"]).agg(lambda v: v.mean(skipna=False))
    diverged = int((~np.isfinite(last[metric])).sum())
    return Tuned(count, diverged, values={int(seed): float(v) for seed, v in values.items()}, inside=True, mean=True)


def _choose(found: Tuned, last: pd.DataFrame, rule: Mapping[str, Any], along: str) -> None:
    """Choose the setting with the best mean over the seeds, of several the one with the lowest strength."""
    sign, column = _order(rule)
    means = _means(last, sign, column)
    if means.dropna().empty:
        return
    best = last[last["setting"].isin(means.index[means == means.max()])]
    chosen = last[last["setting"] == best.loc[best[along].idxmin(), "setting"]]
    found.runs = {int(seed): run for seed, run in zip(chosen["seed"], chosen["run"], strict=True)}
    found.chosen = float(chosen[along].iloc[0])
    same = [column for column in setting_columns(last) if column not in (along, "setting")]
    own = chosen.iloc[0]
    alike = last[(last[same].eq(own[same]) | (last[same].isna() & own[same].isna())).all(axis=1)] if same else last
    found.inside = bool(alike[along].min() < own[along] < alike[along].max())


def _interpolate(
    found: Tuned,
    last: pd.DataFrame,
    rule: Mapping[str, Any],
    metric: str,
    both: Sequence[pd.DataFrame],
    along: str,
    where: str,
) -> None:
    """Interpolate the metric of each seed where a column passes a level, at the largest strength at which it does.

    A passage between two strengths with a diverged run between them does not count as one.
    """
    if last.duplicated(["seed", along]).any():
        raise ConfigError(f"{where}: the group has several runs of a seed at one {along}; it must be one curve")
    if "at" in rule:
        ((column, level),) = rule["at"].items()
        sign = 1
    elif "lost" in rule:
        (sign, column), chance, share = _order(rule["lost"]), rule["lost"]["to"], rule["lost"]["share"]
        found.diverged = int((~np.isfinite(last[column])).sum())
        last = last.assign(**{column: last[column].where(np.isfinite(last[column]), chance)})
        last[metric] = np.log(last[metric])
        sign, level = -sign, (share - 1) * _means(last, sign, column).max() - share * sign * chance
    else:
        sign, column = _order(rule["within_best"])
        best = max(_means(part.assign(setting=settings(part)), sign, column).max() for part in both)
        sign, level = -sign, -(best - rule["within_best"]["within"])
    for seed, part in last.sort_values(along).groupby("seed"):
        x, y = (part[name].to_numpy(dtype=float) for name in (column, metric))
        x = sign * x
        ended = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        past = x[ended] >= level if "at" in rule else x[ended] > level
        never = not past.any() if "at" in rule else past.all() and "within_best" in rule
        steps = np.flatnonzero(~past[:-1] & past[1:])
        before, after = (ended[steps[-1]], ended[steps[-1] + 1]) if len(steps) else (0, 0)
        if after == before + 1 and (past[-1] or "at" in rule):
            share = (level - x[before]) / (x[after] - x[before])
            found.values[int(seed)] = float(y[before] + share * (y[after] - y[before]))
        elif after > before + 1 or len(ended) == 0 or never:
            found.values[int(seed)] = math.nan
            found.extremes[int(seed)] = (y[ended].min(initial=math.inf), y[ended].max(initial=-math.inf))
        else:
            (found.early if past.all() else found.late).append(int(seed))
            found.values[int(seed)] = float(y[ended[0 if past.all() else -1]])
    if "lost" in rule:
        found.values = {seed: math.exp(value) for seed, value in found.values.items()}
    found.inside = not (found.extremes or found.early or found.late)


def _decades(begin: Tuned, end: Tuned) -> Tuned:
    """Return the decades of the metric from one place to another, for each seed."""
    found = Tuned(end.settings, end.diverged, inside=begin.inside and end.inside)
    found.values = {seed: math.log10(end.values[seed] / value) for seed, value in begin.values.items()}
    found.early, found.late = (sorted({*a, *b}) for a, b in ((begin.early, end.early), (begin.late, end.late)))
    return found


def _measure_grid(found: Tuned, last: pd.DataFrame, rule: Mapping[str, Any], along: str) -> None:
    """Measure the share of good settings, or the slope of the best strength, for each seed."""
    found.grid = True
    inner = rule.get("share_within") or rule["slope_of_best"]
    sign, column = _order(inner)
    means = _means(last, sign, column)
    if "share_within" in rule:
        found.values = grids.shares_within(last, column, sign, means.max() - inner["within"])
        columns = [last]
    else:
        found.values = grids.slopes_of_best(last, column, sign, along, inner["over"])
        columns = [part for _, part in last.groupby(inner["over"])]
        rates = ", ".join(f"{rate:g}" for rate in np.sort(last[inner["over"]].unique()))
        found.over = f"{inner['over'].rpartition('.')[2]} {rates}"
    best = [part.loc[part["setting"] == means[part["setting"].unique()].idxmax(), along].iloc[0] for part in columns]
    found.inside = all(
        part[along].min() < strength < part[along].max() for part, strength in zip(columns, best, strict=True)
    )


def _means(last: pd.DataFrame, sign: int, column: str) -> pd.Series:
    """Return the mean over seeds of ``sign`` times a column, by setting; NaN where a run diverged."""
    last = last.sort_values("seed")  # the last digit of a mean depends on the order
    values = (sign * last[column]).where(np.isfinite(last[column]))
    return values.groupby(last["setting"]).agg(lambda of_seeds: of_seeds.mean(skipna=False))


def _order(rule: Mapping[str, Any]) -> tuple[int, str]:
    """Return the sign by which a rule orders runs (1 for ``highest``, -1 for ``lowest``), and the rule's column."""
    return (1, rule["highest"]) if "highest" in rule else (-1, rule["lowest"])
