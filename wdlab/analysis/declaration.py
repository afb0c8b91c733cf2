"""The declaration of a figure, ``configs/figure/<name>.yaml``, and the runs that the declaration describes.

Called by ``figures``, ``tables`` and the scripts.

A panel has the runs of ``vary``, or of ``search``: for each of its ``methods`` equally many trials, whose settings are
drawn from intervals, and the runs that are judged, of the trial that is chosen. The keys of ``search`` are

- ``methods``: the overrides of each method by its name, some of which are intervals, see :mod:`wdlab.search`;
- ``trials``: the number of trials of each method; ``seeds``: the seeds of a trial, which no judged run has;
- ``choose``: ``{highest: val/accuracy}`` or ``{lowest: val/loss}``: the column at the end of the trials, averaged over
  their seeds, by which one is chosen. A trial of which a run diverged is the worst, and the first of equals is chosen;
- ``judged``: further overrides of the judged runs, such as measurements that a trial does without.
"""

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from wdlab import search
from wdlab.analysis import claims
from wdlab.errors import ConfigError
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import CONFIGS, compose_config, run_name

SCALES = ("quick", "cpu", "paper")
DIGITS = 7  # of a value by which a trial is chosen; those of a figure's table

Ends = Callable[[RunDirectory, str], float | None]  # see ``figure_runs``


@dataclass(frozen=True)
class FigureRun:
    """One run of a figure.

    Attributes:
        panel: the panel in which it is drawn.
        overrides: the overrides of its config.
        directory: its directory.
        searched: in a panel with a search, the name of the ``method``, the ``stage`` (``trial`` or ``judged``) and the
            number of the ``trial``, or of that which was chosen; else empty.
    """

    panel: str
    overrides: tuple[str, ...]
    directory: RunDirectory
    searched: Mapping[str, Any] = field(default_factory=dict)


def names() -> list[str]:
    """Return the names of all figures: fig1, fig2, ..., then those of studies: study1, ..."""
    return sorted((p.stem for p in (CONFIGS / "figure").glob("*.yaml")), key=lambda n: (len(n), n))


def read(name: str, scale: str) -> dict[str, Any]:
    """Return the declaration of a figure at one scale.

    Args:
        name: the figure, such as ``fig1``.
        scale: one of ``SCALES``.

    Returns:
        The content of the file, with ``name`` and ``scale`` added, and with ``at`` in place of ``scales``: the part for
        this scale, in which ``scale_down`` is joined to one text.

    Raises:
        ConfigError: for a figure, a scale, or a panel of a claim that does not exist, for ``changed`` in a claim at
            another place than a scale or a panel, or a claim that ``claims.check`` refuses.
    """
    if name not in names():
        raise ConfigError(f"figure {name}: does not exist; available: {', '.join(names())}")
    path = CONFIGS / "figure" / f"{name}.yaml"
    declared = copy.deepcopy(_content(path, path.stat().st_mtime_ns))
    scales = declared.pop("scales")
    panels = {panel["panel"] for at in scales.values() for panel in at["panels"]}
    for claim in declared["claims"]:
        claims.check(claim)
        if unknown := set(claim["panels"]) - panels or set(claim.get("changed", ())) - panels - set(scales):
            raise ConfigError(f"figure {name}: claim {claim['id']} names panel {unknown.pop()}, which no scale has")
    if scale not in scales:
        raise ConfigError(f"SCALE={scale}: must be one of {', '.join(scales)}")
    at = scales[scale] | {"scale_down": "; ".join(scales[scale]["scale_down"])}
    return declared | {"name": name, "scale": scale, "at": at}


@functools.cache
def _content(path: Path, changed: int) -> dict[str, Any]:
    """Return the content of a file that was last changed at a time. OmegaConf takes 0.2 s for study1."""
    return OmegaConf.to_container(OmegaConf.load(path), resolve=True)


def first_overrides(panel: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the overrides, but for the seed, of the runs with which a panel begins: of ``vary``, and of the trials.

    No config is composed, so this takes a hundredth of the time of :func:`figure_runs`.
    """
    return [*_varied(panel), *itertools.chain.from_iterable(_points(panel).values())]


def figure_runs(declared: Mapping[str, Any], root: str | Path, end_of: Ends | None = None) -> list[FigureRun]:
    """Return all runs of a figure at its scale: in each panel one for each seed and each line of ``vary``.

    In a panel with a search these are the trials, and the judged runs of those methods whose trials have all finished.
    So the runs are complete if none is left to do.

    Args:
        declared: the declaration, as :func:`read` returns it.
        root: the folder of the run directories.
        end_of: returns the last value of a column in a run: None if the run is not finished, NaN if it diverged. By
            default it is read from the run's directory.
    """
    result = []
    for panel in declared["at"]["panels"]:
        lines = _varied(panel)
        result += _runs_of(panel, lines, seeds(declared, panel), root, [{}] * len(lines))
        if "search" in panel:
            result += _searched(panel, seeds(declared, panel), root, end_of or _end)
    return result


def _runs_of(
    panel: Mapping[str, Any],
    lines: Sequence[tuple[str, ...]],
    seeds: Sequence[int],
    root: str | Path,
    searched: Sequence[Mapping[str, Any]],
) -> list[FigureRun]:
    """Return the run of each line of overrides and each seed, in the order of the seeds."""
    # Once per line and not per run: this takes nearly all the time. No config file refers to the seed.
    configs = [OmegaConf.to_container(compose_config(line), resolve=True) for line in lines]
    return [
        FigureRun(
            panel["panel"], (*line, f"seed={seed}"), RunDirectory(root, run_name(config | {"seed": seed})), of_line
        )
        for seed in seeds
        for line, config, of_line in zip(lines, configs, searched, strict=True)
    ]


def _searched(panel: Mapping[str, Any], seeds: Sequence[int], root: str | Path, end_of: Ends) -> list[FigureRun]:
    """Return the trials of a panel's search, and the judged runs of those methods whose trials have all finished."""
    declared = panel["search"]
    sign, column = _order(panel, seeds)
    trials, judged = [], []
    for method, points in _points(panel).items():
        of_trials = [{"method": method, "stage": "trial", "trial": number} for number in range(len(points))]
        runs = _runs_of(panel, points, declared["seeds"], root, of_trials)
        trials += runs
        ends = [[] for _ in points]
        for run in runs:
            ends[run.searched["trial"]].append(end_of(run.directory, column))
        if not any(value is None for of_trial in ends for value in of_trial):
            best = chosen([sign * sum(of_trial) / len(of_trial) for of_trial in ends])
            overrides = (*points[best], *declared.get("judged", ()))
            of_method = {"method": method, "stage": "judged", "trial": best}
            judged += _runs_of(panel, [overrides], seeds, root, [of_method])
    return trials + judged


def _order(panel: Mapping[str, Any], seeds: Sequence[int]) -> tuple[int, str]:
    """Return 1 or -1, by which the column that trials are chosen by is multiplied to be highest, and the column.

    Raises:
        ConfigError: if ``choose`` has another form, or if a judged run has the seed of a trial.
    """
    where, rule = f"panel {panel['panel']}: search", panel["search"]["choose"]
    if len(rule) != 1 or not set(rule) <= {"highest", "lowest"}:
        raise ConfigError(f"{where}: choose={rule}: must be highest or lowest, and a column")
    if both := set(seeds) & set(panel["search"]["seeds"]):
        raise ConfigError(f"{where}: seed {min(both)} is of the trials and of the judged runs")
    ((order, column),) = rule.items()
    return 1 if order == "highest" else -1, column


def chosen(scores: Sequence[float]) -> int:
    """Return the number of the trial with the highest score, the first of equals. A score of NaN is the worst.

    Scores are compared to the digits that a figure's table has, so that the table and the runs agree on the choice.
    """
    rounded = [float(f"{score:.{DIGITS}g}") if math.isfinite(score) else -math.inf for score in scores]
    return rounded.index(max(rounded))


def _end(directory: RunDirectory, column: str) -> float | None:
    """Return the last value of a column in a run: None if the run is not finished, NaN if it diverged.

    Raises:
        ConfigError: if a run that ended well has no such column.
    """
    if not directory.finished:
        return None
    end = directory.read("summary.json")
    if directory.status == "done" and column not in end:
        raise ConfigError(f"search: choose: {column} was not measured in {directory.name}")
    value = end.get(column) if directory.status == "done" else None
    return math.nan if value is None else float(value)


def _varied(panel: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the overrides of each line of a panel's ``vary``."""
    return [(*panel.get("shared", ()), *line) for vary in panel.get("vary", ()) for line in _lines(vary)]


def _points(panel: Mapping[str, Any]) -> dict[str, list[tuple[str, ...]]]:
    """Return the overrides of each trial of each method of a panel's search; {} if there is none."""
    declared, parser = panel.get("search", {"methods": {}}), OverridesParser.create()
    drawn = {
        method: search.expand(parser.parse_overrides(list(line)), declared["trials"])
        for method, line in declared["methods"].items()
    }
    return {method: [(*panel.get("shared", ()), *point) for point in points] for method, points in drawn.items()}


def _lines(vary: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the overrides of each combination of values in a line of ``vary``; ``a=1,2`` means two values for ``a``."""
    choices = []
    for override in OverridesParser.create().parse_overrides(list(vary)):
        key = override.get_key_element()
        values = override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_string()]
        choices.append([f"{key}={value}" for value in values])
    return itertools.product(*choices)


def seeds(declared: Mapping[str, Any], panel: Mapping[str, Any]) -> list[int]:
    """Return the seeds of a panel: the panel's own ``seeds``, or else those of the figure's scale."""
    return list(panel.get("seeds", declared["at"]["seeds"]))
