"""Composition of the configs of a sweep's jobs. Called by the sweeper.

Jobs that choose the same files (``model=mlp``) and differ in values (``seed=3``) share one composition by Hydra.
"""

import contextlib
import copy
from collections.abc import Collection, Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from wdlab import interpolations
from wdlab.records.directory import RunDirectory
from wdlab.sweeps.job import SweepJob


class Composer:
    """Function from the overrides of a job to its config, without the ``hydra`` node.

    Hydra composes once for each choice of files; values are then set in copies of the result. Finding and merging files
    takes most of the time.

    Args:
        loader: Hydra's loader of the sweep.
        config: the sweep's own config.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        self._loader, self._config = loader, config
        self._parser = OverridesParser.create(config_loader=loader)
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._groups: dict[str, bool] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """Return the config of the job with these overrides.

        Raises:
            ConfigCompositionException: if an override does not fit the config, as from Hydra.
        """
        parsed = self._parser.parse_overrides(list(overrides))
        values = [o for o in parsed if o.type is OverrideType.CHANGE and not self._names_a_file(o)]
        rest = tuple(o.input_line for o in parsed if o not in values)
        if any(o.type is not OverrideType.CHANGE for o in parsed):  # with + and ~ the order of the overrides matters
            values, rest = [], tuple(overrides)
        if rest not in self._composed:
            composed = self._loader.load_sweep_config(self._config, list(rest))
            with open_dict(composed):
                del composed["hydra"]
            self._composed[rest] = composed
        config = copy.deepcopy(self._composed[rest])
        for override in values:
            _set_value(config, override)
        interpolations.read_environment(config)
        return config

    def job(self, overrides: list[str], number: int) -> "SweepJob":
        """Return job ``number`` of the sweep, its ``${hydra:...}`` and ``${now:...}`` replaced by fixed values."""
        config = self(overrides)
        pinned = interpolations.pin(config, self._loader, self._config, overrides, number)
        return SweepJob([*overrides, *pinned], config, RunDirectory.of(config))

    def _names_a_file(self, override: Override) -> bool:
        """Return True if an override chooses a file or changes Hydra's own settings, so that Hydra has to compose."""
        key = override.key_or_group
        if key not in self._groups:  # kept, as Hydra searches all config folders in each call
            self._groups[key] = self._loader.get_group_options(key) != []
        return override.package is not None or key.startswith("hydra.") or self._groups[key]


def _set_value(config: DictConfig, override: Override) -> None:
    """Set the value of ``key=value`` in place, as Hydra does, and raise Hydra's errors."""
    try:
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise ConfigCompositionException(f"Error merging override {override.input_line}") from error


def as_sweep_override(override: str, groups: Collection[str]) -> str:
    """Return ``key=value`` as a sweep over one value, ``key=choice(value)``, if the key is a setting in a config group.

    Hydra first composes the sweep itself, without the overrides that are swept over. Without this, ``model.width=8``
    next to ``model=mlp,resnet8`` would fail there if the default model has no width.

    Args:
        override: an override from the command line.
        groups: the config groups, such as ``regularizer/over_time``.

    Returns:
        The override, unmodified if it is a sweep already, cannot be parsed, or concerns no group.
    """
    key, _, value = override.partition("=")
    if not key.lstrip("+").startswith(tuple(f"{group.replace('/', '.')}." for group in groups if "hydra" not in group)):
        return override
    swept = f"{key}=choice({value})"
    with contextlib.suppress(HydraException, AttributeError):  # the second under -O: Hydra's parser relies on asserts
        one, other = OverridesParser.create().parse_overrides([override, swept])
        if not one.is_sweep_override() and [*other.sweep_string_iterator()] == [one.get_value_element_as_str()]:
            return swept
    return override  # if it cannot be parsed, Hydra reports why
