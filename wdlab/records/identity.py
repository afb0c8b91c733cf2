"""The identity of a run: the configuration that decides its numbers, and the name that is a hash of it.

Imports no torch. Used by everything that composes a configuration or names a run.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf

from wdlab import interpolations, settings
from wdlab.errors import NAME, ConfigError, is_name

settings.register()  # the schema that configs/train.yaml names

PROJECT = Path(__file__).resolve().parents[2]
CONFIGS = PROJECT / "configs"

SCIENTIFIC_KEYS = ("dataset", "model", "optimizer", "regularizer", "lr_schedule", "train", "seed")
NAMED_KEYS = ("dataset", "model", "optimizer", "regularizer")


def compose_config(overrides: Iterable[str]) -> DictConfig:
    """Return the config that ``python -m wdlab.train <overrides>`` runs, also inside another Hydra application."""
    with _own_hydra(), initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra_compose("train", list(overrides))
    interpolations.read_environment(config)
    return config


@contextlib.contextmanager
def _own_hydra() -> Iterator[None]:
    """Set aside the state that Hydra keeps once per process, and put it back at the end."""
    kept = {kind: Singleton._instances.pop(kind, None) for kind in (GlobalHydra, JobRuntime, VersionBase)}
    try:
        yield
    finally:
        for kind, instance in kept.items():
            Singleton._instances.pop(kind, None)
            if instance is not None:
                Singleton._instances[kind] = instance


def scientific_config(config: DictConfig) -> dict[str, Any]:
    """Return the part of a config that decides the numbers, resolved: not where or how a run is recorded.

    Raises:
        ConfigError: if a group of keys is missing or has no name.
    """
    whole = OmegaConf.to_container(config, resolve=True)
    for key in (*SCIENTIFIC_KEYS, "runtime"):
        if key not in whole:
            raise ConfigError(f"{key}: is missing")
        if key != "seed" and not isinstance(whole[key], dict):
            raise ConfigError(f"{key}={whole.get(key)}: must be a group of keys")
    for key in NAMED_KEYS:
        name = whole[key].get("name")
        if not is_name(name):
            raise ConfigError(f"{key}.name={name}: must be {NAME}")
    return {key: whole.get(key) for key in SCIENTIFIC_KEYS} | {"precision": whole["runtime"].get("precision")}


def run_name(config: DictConfig) -> str:
    """Return the run's name: the names of the chosen configs, then a hash of the scientific config.

    Equal numbers hash equally (1 and 1.0). Keys that are null are left out, so that a new optional key renames no
    earlier run. ``_target_`` is left out too, so that a class can move to another module: a choice is identified by its
    group and name.
    """
    scientific = scientific_config(config)
    text = json.dumps(_canonical(scientific), sort_keys=True, allow_nan=True)
    names = "-".join(str(scientific[key]["name"]) for key in NAMED_KEYS)
    return f"{names}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _canonical(value: Any) -> Any:
    """Return a value in the form that is hashed: without nulls and ``_target_``, integers as floats."""
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items() if v is not None and k != "_target_"}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
