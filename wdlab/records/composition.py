"""Composition of many configs, most of which differ in values only. Called by ``records.identity`` and ``sweeps``."""

import pickle
from collections.abc import Callable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class Compositions:
    """Callable that returns the config of a list of overrides.

    Finding and merging config files takes most of Hydra's time. So Hydra composes a config once for each choice of
    files (``model=mlp``), and values (``seed=3``) are set in a copy of this config.

    Args:
        compose: returns the config that Hydra composes from a list of overrides.
        is_group: returns True if a key is a config group; called once for each key.
        parser: the parser of overrides.
    """

    def __init__(
        self, compose: Callable[[list[str]], DictConfig], is_group: Callable[[str], bool], parser: OverridesParser
    ) -> None:
        self._compose, self._is_group, self._parser = compose, is_group, parser
        self._parsed: dict[str, Override] = {}
        self._composed: dict[tuple[str, ...], bytes] = {}  # pickled: a copy made by pickle takes a fifth of the time
        self._groups: dict[str, bool] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """Return the config of these overrides.

        Raises:
            HydraException: Hydra's own error for an override that does not fit the config.
        """
        for text in overrides:
            if text not in self._parsed:
                (self._parsed[text],) = self._parser.parse_overrides([text])
        parsed = [self._parsed[text] for text in overrides]
        values = [o for o in parsed if o.type is OverrideType.CHANGE and not self._is_for_hydra(o)]
        rest = tuple(o.input_line for o in parsed if o not in values)
        if any(o.type is not OverrideType.CHANGE for o in parsed):  # with + and ~ the order of the overrides matters
            values, rest = [], tuple(overrides)
        if rest not in self._composed:
            self._composed[rest] = pickle.dumps(self._compose(list(rest)))
        config = pickle.loads(self._composed[rest])
        for override in values:
            _set_value(config, override)
        return config

    def _is_for_hydra(self, override: Override) -> bool:
        """Return True if an override chooses a file, changes Hydra's own settings, or is a sweep."""
        key = override.key_or_group
        if key not in self._groups:  # stored, since a search by Hydra in all config folders takes 10 ms
            self._groups[key] = "." not in key and self._is_group(key)
        hydras = override.package is not None or key.startswith("hydra.") or self._groups[key]
        return hydras or override.is_sweep_override()


def _set_value(config: DictConfig, override: Override) -> None:
    """Apply an override ``key=value`` to ``config`` in place, with the same result as Hydra.

    Raises:
        ConfigCompositionException: Hydra's own error for an override that does not fit the config.
    """
    try:
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise ConfigCompositionException(f"Error merging override {override.input_line}") from error
