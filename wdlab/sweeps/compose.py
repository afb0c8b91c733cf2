"""The configurations of the jobs of a sweep, composed once per choice of files."""

import contextlib
import copy
from collections.abc import Collection, Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict

from wdlab import interpolations
from wdlab.records.directory import RunDirectory
from wdlab.sweeps.job import SweepJob


class Composer:
    """The configs of a sweep's jobs, without Hydra's own part.

    Those that differ only in values are composed once: what takes the time, finding and merging files, is the same for
    all of them.

    Args:
        loader, config: those of the sweep.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        self._loader, self._config = loader, config
        self._parser = OverridesParser.create(config_loader=loader)
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._groups: dict[str, bool] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """The config that the overrides make."""
        parsed = self._parser.parse_overrides(list(overrides))
        values = [o for o in parsed if o.type is OverrideType.CHANGE and not self._names_a_file(o)]
        rest = tuple(o.input_line for o in parsed if o not in values)
        if any(o.type is not OverrideType.CHANGE for o in parsed):  # whose place among the others matters
            values, rest = [], tuple(overrides)
        if rest not in self._composed:
            composed = self._loader.load_sweep_config(self._config, list(rest))
            with open_dict(composed):
                del composed["hydra"]
            self._composed[rest] = composed
        config = copy.deepcopy(self._composed[rest])
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        interpolations.read_environment(config)
        return config

    def job(self, overrides: list[str], number: int) -> "SweepJob":
        """The job of a sweep that the overrides make, with values for what Hydra resolves in a job only."""
        config = self(overrides)
        pinned = interpolations.pin(config, self._loader, self._config, overrides, number)
        return SweepJob([*overrides, *pinned], config, RunDirectory.of(config))

    def _names_a_file(self, override: Override) -> bool:
        key = override.key_or_group
        if key not in self._groups:  # Hydra looks through all folders each time
            self._groups[key] = self._loader.get_group_options(key) != []
        return override.package is not None or key.startswith("hydra.") or self._groups[key]


def left_to_the_jobs(override: str, groups: Collection[str]) -> str:
    """``key=value`` as a sweep over this one value, if the key belongs to one of the groups that jobs choose files of.

    Hydra first composes the sweep itself, without the choices that are swept over, and there the key may not exist.
    """
    key, _, value = override.partition("=")
    if not key.lstrip("+").startswith(tuple(f"{group.replace('/', '.')}." for group in groups if "hydra" not in group)):
        return override
    swept = f"{key}=choice({value})"
    with contextlib.suppress(HydraException, AttributeError):  # the latter under python -O: Hydra reads in its asserts
        one, other = OverridesParser.create().parse_overrides([override, swept])
        if not one.is_sweep_override() and [*other.sweep_string_iterator()] == [one.get_value_element_as_str()]:
            return swept
    return override  # Hydra says what is wrong with it
