"""Values of the interpolations that depend on more than the config: ``oc.env``, ``hydra`` and ``now``.

``${oc.env:...}`` is read as if its text had been typed on the command line. ``${hydra:...}`` and ``${now:...}`` have a
value inside a Hydra job only, so a sweep replaces them by fixed values when it composes its jobs.
Called by ``records.identity``, ``train`` and ``sweeps``.
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

ALWAYS_TEXT = ("paths", "logger")  # groups whose values from the environment are not read as numbers
_OF_A_JOB = re.compile(r"\$\{\s*(hydra|now)\s*:")
_OF_THE_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:")


def read_environment(config: DictConfig) -> None:
    """Replace ``${oc.env:...}``, in place, by the number, list, truth value or null that its text spells.

    Other text stays text, and so do all paths and settings of the logger.
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
    """Replace ``${hydra:...}`` and ``${now:...}``, in place, by the values that they have in one job of a sweep.

    Args:
        config: the job's config, composed from ``overrides``; changed in place.
        loader: Hydra's loader of the sweep.
        sweep: the sweep's own config.
        overrides: those of the job.
        number: of the job in the sweep.

    Returns:
        The values as further overrides. With them, another process composes the same config.
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
    OmegaConf.copy_cache(from_config=composed, to_config=sweep)  # all jobs get the same time
    for path, value in values.items():
        OmegaConf.update(config, path, value, merge=False)
    return [f"{path}={typed(value)}" for path, value in values.items()]


@contextlib.contextmanager
def as_hydra_config(config: DictConfig) -> Iterator[None]:
    """Context manager in which ``${hydra:...}`` is resolved by ``config``, whose ``hydra`` node becomes read-only."""
    instance = HydraConfig.instance()
    before = instance.cfg
    instance.set_config(config)
    try:
        yield
    finally:
        instance.cfg = before


def _found(config: DictConfig, pattern: re.Pattern[str]) -> Iterator[tuple[str, Any]]:
    """Yield path and unresolved value of each setting that contains ``pattern``. A list is one setting."""
    plain = OmegaConf.to_container(config, resolve=False)
    if pattern.search(str(plain)):
        yield from ((path, raw) for path, raw in _leaves(plain) if pattern.search(str(raw)))


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and value of everything in nested dicts that is not a dict."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> Any:
    """Return a config node as resolved dicts and lists; any other value unmodified."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _read(value: Any) -> Any:
    """Return the value that Hydra reads from text after ``key=``; the text itself if that is not a single value."""
    if isinstance(value, list):
        return [_read(item) for item in value]
    if not isinstance(value, str):
        return value
    try:
        override = OverridesParser.create().parse_override(f"key={value}")
    except (HydraException, AttributeError):  # AttributeError under python -O, since Hydra's parser relies on asserts
        return value
    return value if override.is_sweep_override() else override.value()


def typed(value: Any) -> str:
    """Return a value as one would type it on the command line, with all text in quotes."""

    def quoted(node: Any) -> Any:
        if isinstance(node, str):
            return QuotedString(node, Quote.single)
        return [quoted(item) for item in node] if isinstance(node, list) else node

    # Private, as the public get_value_element_as_str needs an Override, which is made by parsing the text wanted here.
    return Override._get_value_element_as_str(quoted(value))
