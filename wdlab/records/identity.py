"""The identity of a run: the part of its config that decides its numbers, and its name, which has a hash of that part.

Imports no torch. Used by everything that composes a config or needs the name of a run.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase
from omegaconf import DictConfig

from wdlab import interpolations, settings
from wdlab.errors import NAME_RULE, ConfigError, is_name
from wdlab.records.composition import Compositions

settings.register()  # the schema that configs/train.yaml names

PROJECT = Path(__file__).resolve().parents[2]
CONFIGS = PROJECT / "configs"

# Keys of a config that decide the numbers of a run, and those whose ``name`` is part of the name of a run.
SCIENTIFIC_KEYS = ("dataset", "model", "optimizer", "regularizer", "lr_schedule", "train", "seed")
NAMED_KEYS = ("dataset", "model", "optimizer", "regularizer")


def compose_config(overrides: Iterable[str]) -> DictConfig:
    """Return the config of the run that ``python -m wdlab.train <overrides>`` trains.

    This function also works inside another Hydra application, and does not change the state of that application.
    """
    given = list(overrides)
    try:
        config = _compositions(_state_of_files())(given)
    except Exception:
        config = _composed_by_hydra(given)  # which raises Hydra's own error
    interpolations.read_environment(config)
    return config


@functools.lru_cache(maxsize=1)
def _compositions(state_of_files: tuple[tuple[str, int], ...]) -> Compositions:
    """Return what composes configs until a config file is changed, added or removed."""
    return Compositions(_composed_by_hydra, lambda key: (CONFIGS / key).is_dir(), OverridesParser.create())


def _state_of_files() -> tuple[tuple[str, int], ...]:
    """Return path and time of change, in ns, of every file and folder of configs."""
    found, folders = [], [str(CONFIGS)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                found.append((entry.path, entry.stat().st_mtime_ns))
                if entry.is_dir():
                    folders.append(entry.path)
    return tuple(found)


def _composed_by_hydra(overrides: list[str]) -> DictConfig:
    with _own_hydra(), initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra_compose("train", overrides)


@contextlib.contextmanager
def _own_hydra() -> Iterator[None]:
    """Context manager in which Hydra's global state is empty; at the end the previous state is restored."""
    kept = {kind: Singleton._instances.pop(kind, None) for kind in (GlobalHydra, JobRuntime, VersionBase)}
    try:
        yield
    finally:
        for kind, instance in kept.items():
            Singleton._instances.pop(kind, None)
            if instance is not None:
                Singleton._instances[kind] = instance


def scientific_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a config that decides a run's numbers, as plain values with interpolations resolved.

    The keys are ``SCIENTIFIC_KEYS`` and ``precision``, which is ``runtime.precision`` of the config. Other settings
    decide where and how a run is computed and recorded.

    Raises:
        ConfigError: if a key is missing, is not a group of keys, or lacks a valid ``name``.
    """
    whole = interpolations.plain(config)
    for key in (*SCIENTIFIC_KEYS, "runtime"):
        if key not in whole:
            raise ConfigError(f"{key}: is missing")
        if key != "seed" and not isinstance(whole[key], dict):
            raise ConfigError(f"{key}={whole.get(key)}: must be a group of keys")
    for key in NAMED_KEYS:
        name = whole[key].get("name")
        if not is_name(name):
            raise ConfigError(f"{key}.name={name}: must be {NAME_RULE}")
    return {key: whole.get(key) for key in SCIENTIFIC_KEYS} | {"precision": whole["runtime"].get("precision")}


def run_name(config: Mapping[str, Any]) -> str:
    """Return a run's name: the ``name`` of each of ``NAMED_KEYS``, then 12 digits of a hash.

    The hash is computed from :func:`scientific_config`. 1 and 1.0 hash equally. Keys that are null are left out, so
    that earlier runs keep their names when an optional key is added. ``_target_`` is left out too, so that a class can
    be moved to another module: a file of a config group is identified by its group and its name.

    Raises:
        ConfigError: as :func:`scientific_config`.
    """
    scientific = scientific_config(config)
    text = json.dumps(_canonical(scientific), sort_keys=True, allow_nan=True)
    names = "-".join(str(scientific[key]["name"]) for key in NAMED_KEYS)
    return f"{names}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _canonical(value: Any) -> Any:
    """Return a nested value in the form that is hashed: without null keys and ``_target_``, with integers as floats."""
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items() if v is not None and k != "_target_"}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
