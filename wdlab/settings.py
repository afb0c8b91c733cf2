"""The settings of a run that are values and not choices of config files: their types and permitted values.

:func:`register` stores them in Hydra as the schema ``base_train``, which ``configs/train.yaml`` names first. OmegaConf
therefore refuses a value of another type, and a key that no class here has. :func:`read` also checks the ranges. This
module does not import torch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wdlab.errors import ConfigError, explain, unknown_key

# OmegaConf converts the values of a field that has one type: 1.5 and "1" become 1, "yes" becomes True, 3 becomes "3".
# It converts no value of a union type. Adding `bytes` makes a union; `read` refuses bytes in every field.
Whole = int | bytes
Switch = bool | bytes
Text = str | bytes
Number = int | float

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "tf32", "bf16")
AUTO_OR_NEVER = ("auto", "never")
LOGGER_MODES = ("online", "offline", "disabled")

Rule = dict[str, Any]  # metadata of a field: ``allowed`` describes the permitted values, ``holds`` tests a value


def _rule(allowed: str, holds: Callable[[Any], bool] = lambda value: True) -> Rule:
    """Return the rule of a field.

    Args:
        allowed: the permitted values in words, which end the error message "KEY=VALUE: must be ...".
        holds: a function that returns True for a permitted value.
    """
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
    """The length of a run, its updates, and the steps at which it is measured.

    Attributes:
        steps: length of the run in updates.
        batch_size: number of examples per update.
        log_every: updates from one log line to the next.
        eval_every: updates from one evaluation of the whole splits to the next.
        clip_norm: largest norm of the gradient of the loss, to which a longer gradient is scaled; null: no limit.
        label_smoothing: share of every training label that is spread over all classes; null: none.
        average_decay: decay per update of a moving average of the weights; null: no average is kept.
        sharpness_every: updates from one measurement of sharpness and Lipschitz bounds to the next; null: never.
        sharpness_examples: number of training examples over which the Hessian's loss is taken; null: 1,000.
        full_gradient_every: updates from one gradient of the whole training split to the next; null: never.
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
    full_gradient_every: Whole | None = field(default=None, metadata=COUNT_OR_NULL)


@dataclass
class RuntimeSettings:
    """The device of a run and the way it computes. Only ``precision`` is part of the run's identity.

    Attributes:
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU if one is available, else the CPU.
        precision: number format of matrix products and convolutions: ``fp32``, ``tf32`` (CUDA only) or ``bf16``.
        threads: number of CPU threads; null: the number in the run's previous session, in a new run chosen by
            :func:`wdlab.engine.cpu.threads_for`.
        onednn: ``auto`` uses oneDNN's float32 matrix product on the CPU for wide layers, if a check against float64
            finds it exact enough; ``never`` does not.
        channels_last: ``auto`` keeps the channels of a pixel together in memory in networks with convolutions, if torch
            computes the convolutions correctly in this layout, but not for float32 on a GPU, where it is slower;
            ``never`` does not.
        fused: ``auto`` lets Adam, AdamW, SGD and the drop-in optimizers take torch's fused step where torch has one for
            their parameters; ``never`` does not. ``optimizer.fused`` and ``optimizer.foreach`` take precedence. The
            runs of a stack always take it.
        compile: True compiles the network by ``torch.compile``.
        checkpoint_seconds: seconds from one checkpoint to the next; 0 writes one after every update.
    """

    device: Text = field(default=MISSING, metadata=_one_of(*DEVICES))
    precision: Text = field(default=MISSING, metadata=_one_of(*PRECISIONS))
    threads: Whole | None = field(default=None, metadata=THREADS_OR_NULL)
    onednn: Text = field(default=MISSING, metadata=_one_of(*AUTO_OR_NEVER))
    channels_last: Text = field(default=MISSING, metadata=_one_of(*AUTO_OR_NEVER))
    fused: Text = field(default=MISSING, metadata=_one_of(*AUTO_OR_NEVER))
    compile: Switch = field(default=MISSING, metadata=SWITCH)
    checkpoint_seconds: Number = field(default=MISSING, metadata=SECONDS)


@dataclass
class LoggerSettings:
    """The mirror of the records in Weights & Biases.

    Attributes:
        mode: ``online``, ``offline``, ``disabled``, or ``auto`` for the mode in W&B's environment variables.
        project: name of the W&B project; null: W&B's default.
    """

    mode: Text = field(default=MISSING, metadata=_one_of("auto", *LOGGER_MODES))
    project: Text | None = field(default=None, metadata=_or_null(_rule("a name")))


@dataclass
class PathsSettings:
    """The folders that a run uses.

    Attributes:
        data: the folder of the data sets.
        runs: the folder that holds one directory per run.
    """

    data: Text = field(default=MISSING, metadata=FOLDER)
    runs: Text = field(default=MISSING, metadata=FOLDER)


@dataclass
class Settings:
    """All settings of a run. The choices of config files (dataset, model, ...) are further keys, which are not typed.

    Attributes:
        seed: random seed of the initial weights and of the order of the batches.
        train: see :class:`TrainSettings`.
        paths: see :class:`PathsSettings`.
        fail_fast: True stops a sweep after the first run that fails or diverges.
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
    """Store the schema in Hydra. Call it before ``configs/train.yaml`` is composed."""
    schema = OmegaConf.structured(Settings, flags={"struct": False})  # so that the config can add dataset, model, ...
    ConfigStore.instance().store(name="base_train", node=schema, provider="wdlab")


def read(config: DictConfig) -> Settings:
    """Return the settings of a config, checked. A missing key is None if its default is null.

    Args:
        config: the config of a run, composed by Hydra or read from the run's ``config.yaml``.

    Raises:
        ConfigError: if a value is missing or not permitted, or a group has an unknown key. The message names the key,
            the value and what is allowed.
    """
    names = [setting.name for setting in fields(Settings)]
    return _checked(Settings, {name: _plain(config, name) for name in names if name in config})


def read_runtime(config: DictConfig) -> RuntimeSettings:
    """Return the settings in ``config.runtime`` only, checked as by :func:`read`."""
    return _checked(RuntimeSettings, _plain(config, "runtime"), "runtime.")


def _plain(config: DictConfig, key: str) -> Any:
    """Return ``config[key]`` with its interpolations resolved, as plain values; a group as a dict."""
    try:
        value = config[key]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error


def _checked(kind: type, given: Mapping[str, Any], prefix: str = "") -> Any:
    """Return an object of one of the settings classes.

    OmegaConf has already checked the types and keys of a composed config. They are checked again here, since
    ``+key=value`` can add any key, and an old run's ``config.yaml`` is read without the schema. Merging a config into
    the schema instead takes 9 ms, this function 0.1 ms.

    Args:
        kind: the settings class.
        given: the values by key.
        prefix: the path of ``given`` in the config with a final dot, for error messages; "" for the config itself.

    Raises:
        ConfigError: see :func:`read`.
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
