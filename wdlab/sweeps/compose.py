"""Composition of the configs of a sweep's jobs. Called by the sweeper.

Jobs that choose the same files (``model=mlp``) and differ in values (``seed=3``) share one composition by Hydra.
"""

import contextlib
from collections.abc import Collection, Iterable, Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict

from wdlab import interpolations
from wdlab.records.composition import Compositions
from wdlab.records.directory import RunDirectory
from wdlab.sweeps.job import SweepJob


class Composer:
    """Callable that returns the config of a sweep's job, without the ``hydra`` node, from the job's overrides.

    Args:
        loader: the config loader that Hydra has made for the sweep.
        config: the sweep's own config, with its ``hydra`` node.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        self._loader, self._config = loader, config
        parser = OverridesParser.create(config_loader=loader)
        self._composed = Compositions(self._compose, self._is_group, parser)

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """Return the config of the job with these overrides.

        Raises:
            HydraException: Hydra's own error for an override that does not fit the config.
        """
        config = self._composed(overrides)
        interpolations.read_environment(config)
        return config

    def _is_group(self, key: str) -> bool:
        return self._loader.get_group_options(key) != []

    def chosen(self, overrides: Iterable[str]) -> list[str]:
        """Return those of the overrides that choose in a config group, such as ``regularizer=l2``."""
        return [override for override in overrides if self._is_group(override.partition("=")[0].lstrip("+"))]

    def _compose(self, overrides: list[str]) -> DictConfig:
        config = self._loader.load_sweep_config(self._config, overrides)
        with open_dict(config):
            del config["hydra"]
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
