"""The settings of a run that are values and not choices of files: their types, and what is allowed of each.

Registered with Hydra as ``base_train``, the schema that ``configs/train.yaml`` names first. OmegaConf therefore refuses
a value of another type, and a key that no class here has. :func:`read` checks the ranges. Imports no torch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wdlab.errors import ConfigError, explain, unknown_key

# OmegaConf converts what it puts into a field of one type: 1.5 and "1" become 1, "yes" becomes True, 3 becomes "3".
# It converts nothing for a union. `bytes`, which `read` refuses everywhere, makes a union of one type.
Whole = int | bytes
Switch = bool | bytes
Text = str | bytes
Number = int | float

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "tf32", "bf16")
AUTO_OR_NEVER = ("auto", "never")
LOGGER_MODES = ("online", "offline", "disabled")

Rule = dict[str, Any]  # of a field: ``allowed`` says in words, and ``holds`` decides, what its value may be


def _rule(allowed: str, holds: Callable[[Any], bool] = lambda value: True) -> Rule:
    """Return the rule of a field. :func:`wdlab.errors.explain` puts the words into the line that a user reads."""
    return {"allowed": allowed, "holds": holds}


def _whole(low: int, high: int) -> Rule:
    return _rule(f"a whole number between {low} and {high}", lambda value: low <= value <= high)


def _one_of(*choices: str) -> Rule:
    return _rule(f"one of {', '.join(choices)}", lambda value: value in choices)


def _or_null(rule: Rule) -> Rule:
    return _rule(f"null or {rule['allowed']}", lambda value: value is None or rule["holds"](value))


COUNT = _whole(1, 10**12)
COUNT_OR_NULL = _or_null(COUNT)
NORM_OR_NULL = _or_null(_rule("a number > 0", lambda norm: norm > 0))
SMOOTHING_OR_NULL = _or_null(_rule("a number from 0 to below 1", lambda share: 0 <= share < 1))
DECAY_OR_NULL = _or_null(_rule("a number between 0 and 1", lambda decay: 0 < decay < 1))
THREADS_OR_NULL = _or_null(_whole(1, 1024))
SECONDS = _rule("a number >= 0", lambda seconds: seconds >= 0)
SWITCH = _rule("true or false")
FOLDER = _rule("a folder", bool)
GROUP = _rule("a group of keys")


@dataclass
class TrainSettings:
    """The length of a run, its updates, and the steps at which it measures.

    Attributes:
        steps: length of the run, in updates.
        batch_size: examples of an update.
        log_every: updates from one log line to the next.
        eval_every: updates between log lines that also evaluate the whole splits.
        clip_norm: Number | None = field(default=None, metadata=NORM_OR_NULL)
    label_smoothing: Number | None = field(default=None, metadata=SMOOTHING_OR_NULL)
    average_decay: Number | None = field(default=None, metadata=DECAY_OR_NULL)
    sharpness_every: updates between log lines that also measure the sharpness.
        sharpness_examples: training examples whose loss the Hessian is of.
    """

    steps: Whole = field(default=MISSING, metadata=COUNT)
    batch_size: Whole = field(default=MISSING, metadata=COUNT)
    log_every: Whole = field(default=MISSING, metadata=COUNT)
    eval_every: Whole = field(default=MISSING, metadata=COUNT)
    clip_norm: Number | None = field(default=None, metadata=NORM_OR_NULL)
    label_smoothing: Number | None = field(default=None, metadata=SMOOTHING_OR_NULL)
    average_decay: Number | None = field(default=None, metadata=DECAY_OR_NULL)
    sharpness_every: Whole | None = field(default=None, metadata=COUNT_OR_NULL)
    sharpness_examples: Whole | None = field(default=None, metadata=COUNT_OR_NULL)


@dataclass
class RuntimeSettings:
    """The machine of a run and the way it computes. The precision alone is part of the run's identity.

    Attributes:
        device: auto takes a GPU if there is one.
        precision: of products and convolutions; tf32 needs a CUDA device.
        threads: number of CPU threads; null leaves it to the work and the machine.
        onednn: auto takes oneDNN's float32 product for wide layers where a check against float64 allows it.
        channels_last: auto keeps the channels of a pixel together in memory where that is safe.
        compile: puts the network through ``torch.compile``.
        checkpoint_seconds: seconds from one checkpoint to the next; 0 writes one after every update.
    """

    device: Text = field(default=MISSING, metadata=_one_of(*DEVICES))
    precision: Text = field(default=MISSING, metadata=_one_of(*PRECISIONS))
    threads: Whole | None = field(default=None, metadata=THREADS_OR_NULL)
    onednn: Text = field(default=MISSING, metadata=_one_of(*AUTO_OR_NEVER))
    channels_last: Text = field(default=MISSING, metadata=_one_of(*AUTO_OR_NEVER))
    compile: Switch = field(default=MISSING, metadata=SWITCH)
    checkpoint_seconds: Number = field(default=MISSING, metadata=SECONDS)


@dataclass
class LoggerSettings:
    """The mirror of the records in Weights & Biases.

    Attributes:
        mode: auto takes the mode that the environment gives.
        project: name of the project there; null leaves it to W&B.
    """

    mode: Text = field(default=MISSING, metadata=_one_of("auto", *LOGGER_MODES))
    project: Text | None = field(default=None, metadata=_or_null(_rule("a name")))


@dataclass
class PathsSettings:
    """The folders of a run.

    Attributes:
        data: the data sets.
        runs: one directory per run.
    """

    data: Text = field(default=MISSING, metadata=FOLDER)
    runs: Text = field(default=MISSING, metadata=FOLDER)


@dataclass
class Settings:
    """All settings of a run. Its choices of files (dataset, model, ...) have keys of their own, which are not typed.

    Attributes:
        seed: of the initial weights and of the order of the batches.
        train: see :class:`TrainSettings`.
        paths: see :class:`PathsSettings`.
        fail_fast: a sweep stops at the first run that does not end well.
        runtime: see :class:`RuntimeSettings`.
        logger: see :class:`LoggerSettings`.
    """

    seed: Whole = field(default=MISSING, metadata=_whole(0, 2**32 - 1))
    train: TrainSettings = field(default_factory=TrainSettings, metadata=GROUP)
    paths: PathsSettings = field(default_factory=PathsSettings, metadata=GROUP)
    fail_fast: Switch = field(default=MISSING, metadata=SWITCH)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings, metadata=GROUP)
    logger: LoggerSettings = field(default_factory=LoggerSettings, metadata=GROUP)


def register() -> None:
    """Make the schema known to Hydra; needed before anything composes ``configs/train.yaml``."""
    schema = OmegaConf.structured(Settings, flags={"struct": False})  # so that dataset, model, ... join its keys
    ConfigStore.instance().store(name="base_train", node=schema, provider="wdlab")


def read(config: DictConfig) -> Settings:
    """Return the settings of a config, also of an old one that lacks a key which is null today.

    Args:
        config: a run's, composed or read from its ``config.yaml``.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    names = [setting.name for setting in fields(Settings)]
    return _checked(Settings, {name: _plain(config, name) for name in names if name in config})


def read_runtime(config: DictConfig) -> RuntimeSettings:
    """Return ``config.runtime`` alone, as :func:`read` does."""
    return _checked(RuntimeSettings, _plain(config, "runtime"), "runtime.")


def _plain(config: DictConfig, key: str) -> Any:
    """Return a value, or a group as a dictionary, with its interpolations resolved."""
    try:
        value = config[key]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error


def _checked(kind: type, given: Mapping[str, Any], prefix: str = "") -> Any:
    """Return an object of a class of settings.

    OmegaConf has checked types and keys where a config was composed. They are checked again: ``+key=value`` adds any
    key, and an old run's ``config.yaml`` is read without the schema. Merging it into the schema takes 9 ms, this 0.1.
    """
    names = [setting.name for setting in fields(kind)]
    for key in given:
        if key not in names:
            raise ConfigError(unknown_key(f"{prefix}{key}", names))
    values = {}
    for setting in fields(kind):
        key, value = prefix + setting.name, given.get(setting.name, setting.default)
        if value in (MISSING, dataclasses.MISSING):
            raise ConfigError(f"{key}: is missing")
        if dataclasses.is_dataclass(setting.type) and isinstance(value, Mapping):
            value = _checked(setting.type, value, f"{key}.")
        elif type(value) not in {*get_args(setting.type)} - {bytes} or not setting.metadata["holds"](value):
            raise ConfigError(f"{key}={value}: must be {setting.metadata['allowed']}")
        values[setting.name] = value
    return kind(**values)
