"""Replacement of the interpolations whose values are not in the config: ``oc.env``, ``hydra`` and ``now``.

The text of an environment variable in ``${oc.env:...}`` is parsed as if it had been typed on the command line.
``${hydra:...}`` and ``${now:...}`` have a value inside a Hydra job only, so a sweep replaces them by fixed values when
it composes its jobs. Called by ``records.identity``, ``train`` and ``sweeps``.
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

ALWAYS_TEXT = ("paths", "logger")  # config groups in which the text of an environment variable stays text
_OF_A_JOB = re.compile(r"\$\{\s*(hydra|now)\s*:")
_OF_THE_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:")


def read_environment(config: DictConfig) -> None:
    """Replace ``${oc.env:...}`` in a config, in place, by the number, boolean, null, list or dict that its text spells.

    A setting whose value is other text keeps its interpolation. So do all settings in ``paths`` and ``logger``.
    """
    paths = [path for path, _ in _settings_with(config, _OF_THE_ENVIRONMENT) if path.split(".")[0] not in ALWAYS_TEXT]
    untyped = OmegaConf.create(OmegaConf.to_container(config, resolve=False)) if paths else config
    for path in paths:  # selected untyped: the typed config would refuse the text of a number
        with contextlib.suppress(OmegaConfBaseException):  # the variable is not set: raised again at the value's use
            value = plain(OmegaConf.select(untyped, path))
            parsed = _parsed(value)
            if parsed != value:
                OmegaConf.update(config, path, parsed, merge=False)


def fix_job_values(
    config: DictConfig, loader: ConfigLoader, sweep: DictConfig, overrides: list[str], number: int
) -> list[str]:
    """Replace ``${hydra:...}`` and ``${now:...}``, in place, by the values that they have in one job of a sweep.

    Args:
        config: the job's config, composed from ``overrides``; changed in place.
        loader: the config loader that Hydra passed to the sweeper.
        sweep: the config of the sweep itself, with its ``hydra`` node.
        overrides: the overrides of the job.
        number: the number of the job in the sweep, from 0.

    Returns:
        Overrides ``key=value`` that set the replaced values. If they are added to ``overrides``, another process
        composes the same config.
    """
    paths = [path for path, _ in _settings_with(config, _OF_A_JOB)]
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
            values = {path: plain(OmegaConf.select(composed, path)) for path in paths}
    OmegaConf.copy_cache(from_config=composed, to_config=sweep)  # so that ${now:...} is the same time in all jobs
    for path, value in values.items():
        OmegaConf.update(config, path, value, merge=False)
    return [f"{path}={as_override_text(value)}" for path, value in values.items()]


@contextlib.contextmanager
def as_hydra_config(config: DictConfig) -> Iterator[None]:
    """Context manager in which ``${hydra:...}`` takes its values from ``config``.

    The ``hydra`` node of ``config`` becomes read-only.
    """
    instance = HydraConfig.instance()
    before = instance.cfg
    instance.set_config(config)
    try:
        yield
    finally:
        instance.cfg = before


def _settings_with(config: DictConfig, pattern: re.Pattern[str]) -> Iterator[tuple[str, Any]]:
    """Yield path and unresolved value of each setting whose text contains ``pattern``. A list is one setting."""
    unresolved = OmegaConf.to_container(config, resolve=False)
    if pattern.search(str(unresolved)):
        yield from ((path, raw) for path, raw in leaves(unresolved) if pattern.search(str(raw)))


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted path and value of each entry of nested dicts whose value is not a dict."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def plain(value: Any) -> Any:
    """Return a config node as dicts and lists with its interpolations resolved; return any other value unmodified."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _parsed(value: Any) -> Any:
    """Return the value that Hydra parses from the text after ``key=``.

    Text that is a sweep or cannot be parsed is returned unmodified. The items of a list are parsed one by one; other
    values are returned unmodified.
    """
    if isinstance(value, list):
        return [_parsed(item) for item in value]
    if not isinstance(value, str):
        return value
    try:
        override = OverridesParser.create().parse_override(f"key={value}")
    except (HydraException, AttributeError):  # AttributeError under python -O, since Hydra's parser relies on asserts
        return value
    return value if override.is_sweep_override() else override.value()


def as_override_text(value: Any) -> str:
    """Return a value as the text to type after ``key=`` on the command line, with every string in quotes."""

    def quoted(node: Any) -> Any:
        if isinstance(node, str):
            return QuotedString(node, Quote.single)
        return [quoted(item) for item in node] if isinstance(node, list) else node

    # A private method: the public get_value_element_as_str needs an Override, which is made by parsing this very text.
    return Override._get_value_element_as_str(quoted(value))
