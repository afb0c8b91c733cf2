"""Composition of the configs of a sweep's jobs. Called by the sweeper.

Jobs that choose the same files (``model=mlp``) and differ in values (``seed=3``) share one composition by Hydra.
"""

import contextlib
import pickle
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
    """Callable that returns the config of a sweep's job, without the ``hydra`` node, from the job's overrides.

    Finding and merging config files takes most of Hydra's time. So Hydra composes a config once for each choice of
    files, and the values of a job are set in a copy of this config.

    Args:
        loader: the config loader that Hydra has made for the sweep.
        config: the sweep's own config, with its ``hydra`` node.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        self._loader, self._config = loader, config
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed: dict[str, Override] = {}
        self._composed: dict[tuple[str, ...], bytes] = {}  # pickled: a copy made by pickle takes a fifth of the time
        self._groups: dict[str, bool] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """Return the config of the job with these overrides.

        Raises:
            ConfigCompositionException: Hydra's own error for an override that does not fit the config.
        """
        for text in overrides:
            if text not in self._parsed:
                (self._parsed[text],) = self._parser.parse_overrides([text])
        parsed = [self._parsed[text] for text in overrides]
        values = [o for o in parsed if o.type is OverrideType.CHANGE and not self._names_a_file(o)]
        rest = tuple(o.input_line for o in parsed if o not in values)
        if any(o.type is not OverrideType.CHANGE for o in parsed):  # with + and ~ the order of the overrides matters
            values, rest = [], tuple(overrides)
        if rest not in self._composed:
            composed = self._loader.load_sweep_config(self._config, list(rest))
            with open_dict(composed):
                del composed["hydra"]
            self._composed[rest] = pickle.dumps(composed)
        config = pickle.loads(self._composed[rest])
        for override in values:
            _set_value(config, override)
        interpolations.read_environment(config)
        return config

    def job(self, overrides: list[str], number: int) -> "SweepJob":
        """Return a job of the sweep, with ``${hydra:...}`` and ``${now:...}`` in its config replaced by fixed values.

        Args:
            overrides: the job's overrides. The returned job has further overrides that set the fixed values.
            number: the job's number in the sweep, from 0.
        """
        config = self(overrides)
        pinned = interpolations.fix_job_values(config, self._loader, self._config, overrides, number)
        resolved = interpolations.plain(config)
        return SweepJob([*overrides, *pinned], resolved, RunDirectory.of(resolved))

    def _names_a_file(self, override: Override) -> bool:
        """Return True if an override chooses a file or changes Hydra's own settings, so that Hydra has to compose."""
        key = override.key_or_group
        if key not in self._groups:  # stored, since a search by Hydra in all config folders takes 10 ms
            self._groups[key] = "." not in key and self._loader.get_group_options(key) != []
        return override.package is not None or key.startswith("hydra.") or self._groups[key]


def _set_value(config: DictConfig, override: Override) -> None:
    """Apply an override ``key=value`` to ``config`` in place, with the same result as Hydra.

    Raises:
        ConfigCompositionException: Hydra's own error for an override that does not fit the config.
    """
    try:
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise ConfigCompositionException(f"Error merging override {override.input_line}") from error


def as_sweep_override(override: str, groups: Collection[str]) -> str:
    """Return ``key=value`` as a sweep over one value, ``key=choice(value)``, if the key is a setting in a config group.

    Before the jobs, Hydra composes the sweep's own config from the overrides that have one value. There
    ``model.width=8`` next to ``model=mlp,resnet8`` would fail, unconverted, if the default model has no width.

    Args:
        override: an override from the command line.
        groups: the config groups, such as ``regularizer/over_time``.

    Returns:
        The converted override; ``override`` itself if it is a sweep already, cannot be parsed, or its key is in no
        config group.
    """
    key, _, value = override.partition("=")
    if not key.lstrip("+").startswith(tuple(f"{group.replace('/', '.')}." for group in groups if "hydra" not in group)):
        return override
    swept = f"{key}=choice({value})"
    # AttributeError: raised under python -O, since Hydra's parser relies on asserts
    with contextlib.suppress(HydraException, AttributeError):
        plain, sweep = OverridesParser.create().parse_overrides([override, swept])
        if not plain.is_sweep_override() and [*sweep.sweep_string_iterator()] == [plain.get_value_element_as_str()]:
            return swept
    return override  # Hydra reports the reason if the override cannot be parsed
