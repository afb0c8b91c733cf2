"""Interpolations in a config whose value is not that of the config alone, and the values they get.

``${oc.env:...}`` is read as if it had been typed on the command line. ``${hydra:...}`` and ``${now:...}`` have a value
in a job only, so a sweep gives its jobs fixed values. Called by ``runs``, ``train``, ``sweep`` and ``launchers``.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

ALWAYS_TEXT = ("paths", "logger")
_OF_A_JOB = re.compile(r"\$\{\s*(hydra|now)\s*:")
_OF_THE_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:")


def read_environment(config: DictConfig) -> None:
    """Replace ``${oc.env:...}`` by the number, list, truth value or null that its text spells, in place.

    Paths and the logger's settings stay text, and so does what spells nothing else.
    """
    paths = [path for path, _ in _found(config, _OF_THE_ENVIRONMENT) if path.split(".")[0] not in ALWAYS_TEXT]
    untyped = OmegaConf.create(OmegaConf.to_container(config, resolve=False)) if paths else config
    for path in paths:  # in the typed config, the text of a number would be refused before it is read
        with contextlib.suppress(OmegaConfBaseException):  # the variable is not set: reported where the value is used
            value = _plain(OmegaConf.select(untyped, path))
            read = _read(value)
            if read != value:
                OmegaConf.update(config, path, read, merge=False)


def pin(config: DictConfig, loader: ConfigLoader, sweep: DictConfig, overrides: list[str], number: int) -> list[str]:
    """Replace what a job alone can tell by the values it has in job ``number`` of a sweep, in place.

    Args:
        config: the job's, composed from ``overrides``.
        loader, sweep: that of the sweep, and the sweep's own config.

    Returns:
        The same values as overrides, with which the job's config becomes that one wherever it is composed.
    """
    paths = [path for path, _ in _found(config, _OF_A_JOB)]
    if not paths:
        return []
    composed = loader.load_sweep_config(sweep, overrides)
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    with as_hydra_config(composed):
        folder = Path.cwd() / str(composed.hydra.sweep.dir) / str(composed.hydra.sweep.subdir)
        with read_write(composed.hydra.runtime), open_dict(composed.hydra.runtime):
            composed.hydra.runtime.output_dir = str(folder)
        with as_hydra_config(composed):
            values = {path: _plain(OmegaConf.select(composed, path)) for path in paths}
    OmegaConf.copy_cache(from_config=composed, to_config=sweep)  # a sweep has one time
    for path, value in values.items():
        OmegaConf.update(config, path, value, merge=False)
    return [f"{path}={typed(value)}" for path, value in values.items()]


@contextlib.contextmanager
def as_hydra_config(config: DictConfig) -> Iterator[None]:
    """Resolve ``${hydra:...}`` by ``config``, whose part for Hydra becomes read-only, for a while."""
    instance = HydraConfig.instance()
    before = instance.cfg
    instance.set_config(config)
    try:
        yield
    finally:
        instance.cfg = before


def _found(config: DictConfig, pattern: re.Pattern[str]) -> Iterator[tuple[str, Any]]:
    """The paths of values, lists as a whole, that have an interpolation of a kind, and the values before it."""
    plain = OmegaConf.to_container(config, resolve=False)
    if pattern.search(str(plain)):
        yield from ((path, raw) for path, raw in _leaves(plain) if pattern.search(str(raw)))


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _read(value: Any) -> Any:
    """What text is on the command line, behind ``key=``; text of which that makes no value stays what it is."""
    if isinstance(value, list):
        return [_read(item) for item in value]
    if not isinstance(value, str):
        return value
    try:
        override = OverridesParser.create().parse_override(f"key={value}")
    except (HydraException, AttributeError):  # the latter under python -O: Hydra reads in its asserts
        return value
    return value if override.is_sweep_override() else override.value()


def typed(value: Any) -> str:
    """A value as it is typed on the command line, with all text in quotes."""

    def quoted(node: Any) -> Any:
        if isinstance(node, str):
            return QuotedString(node, Quote.single)
        return [quoted(item) for item in node] if isinstance(node, list) else node

    return Override._get_value_element_as_str(quoted(value))
