"""The declaration of a figure, ``configs/figure/<name>.yaml``, and the runs that the declaration describes.

Called by ``figures``, ``tables`` and the scripts.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from wdlab.analysis import claims
from wdlab.errors import ConfigError
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import CONFIGS, compose_config, run_name

SCALES = ("quick", "cpu", "paper")


@dataclass(frozen=True)
class FigureRun:
    """One run of a figure: the panel in which it is drawn, the overrides of its config, and its directory."""

    panel: str
    overrides: tuple[str, ...]
    directory: RunDirectory


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
        ConfigError: for a figure, a scale, or a panel of a claim that does not exist, or a claim that ``claims.check``
            refuses.
    """
    if name not in names():
        raise ConfigError(f"figure {name}: does not exist; available: {', '.join(names())}")
    declared = OmegaConf.to_container(OmegaConf.load(CONFIGS / "figure" / f"{name}.yaml"), resolve=True)
    scales = declared.pop("scales")
    panels = {panel["panel"] for at in scales.values() for panel in at["panels"]}
    for claim in declared["claims"]:
        claims.check(claim)
        unknown = set(claim["panels"]) - panels
        if unknown:
            raise ConfigError(f"figure {name}: claim {claim['id']} names panel {unknown.pop()}, which no scale has")
    if scale not in scales:
        raise ConfigError(f"SCALE={scale}: must be one of {', '.join(scales)}")
    at = scales[scale] | {"scale_down": "; ".join(scales[scale]["scale_down"])}
    return declared | {"name": name, "scale": scale, "at": at}


def figure_runs(declared: Mapping[str, Any], root: str | Path) -> list[FigureRun]:
    """Return all runs of a figure at its scale: in each panel one for each seed and each line of ``vary``.

    Args:
        declared: the declaration, as :func:`read` returns it.
        root: the folder of the run directories.
    """
    result = []
    for panel in declared["at"]["panels"]:
        lines = [line for vary in panel.get("vary", ()) for line in _lines(vary)]
        shared = tuple(panel.get("shared", ()))
        # Once per line and not per run: this takes nearly all the time. No config file refers to the seed.
        configs = [OmegaConf.to_container(compose_config((*shared, *line)), resolve=True) for line in lines]
        for seed in seeds(declared, panel) if lines else ():
            for line, config in zip(lines, configs, strict=True):
                directory = RunDirectory(root, run_name(config | {"seed": seed}))
                result.append(FigureRun(panel["panel"], (*shared, *line, f"seed={seed}"), directory))
    return result


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
