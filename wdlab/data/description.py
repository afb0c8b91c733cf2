"""Checks of the values of a ``configs/dataset`` file, before any data is read."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf

from wdlab.data.augment import PADDINGS, Augment
from wdlab.data.environment import is_environment
from wdlab.errors import NAME_RULE, ConfigError, is_name

REQUIRED_KEYS = ("name", "classes", "val_size", "split_seed")
REQUIRED_OF_ENVIRONMENTS = (
    *("name", "environment", "classes", "episodes", "learning_starts", "steps_per_update", "buffer_size", "gamma"),
    *("target_update_interval", "exploration_fraction", "exploration_final_eps"),
)
REQUIRED_OF_IMAGES = ("mean", "std", "per_class")
AUGMENT_KEYS = tuple(field.name for field in fields(Augment))


def is_text(config: Mapping[str, Any]) -> bool:
    """Return True if the data set is text, with the shape (context,); the shape of images has three entries."""
    return len(config["shape"]) == 1


def check_description(config: Mapping[str, Any]) -> None:
    """Check the keys and values of a ``configs/dataset`` file.

    Raises:
        ConfigError: if a key is missing or unknown, or if a value is of the wrong type or out of its range.
    """
    values = {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in config.items()}
    shape = values.get("shape")
    if not (isinstance(shape, list) and len(shape) in (1, 3) and all(_is_int(size, 1) for size in shape)):
        raise ConfigError(f"dataset.shape={shape}: must be channels, height and width, or the context of a text")
    required = (*REQUIRED_KEYS, *(() if is_text(values) else REQUIRED_OF_IMAGES))
    for key in REQUIRED_OF_ENVIRONMENTS if is_environment(values) else required:
        if key not in values:
            raise ConfigError(f"dataset.{key}: is missing")
    if is_environment(values):
        _raise_first_failure("dataset", values, _environment_checks(values))
        return
    checks = {key: (values.get(key) is None or is_name(values[key]), NAME_RULE) for key in ("name", "source")}
    checks |= {"shape": (True, "")}
    checks |= _common_checks(values)
    checks |= _text_checks(values) if is_text(values) else _image_checks(values)
    _raise_first_failure("dataset", values, checks)
    if not is_text(values) and values.get("augment") is not None:
        _check_augment(values["augment"], min(shape[1:]))
    if values.get("per_class") is not None and values.get("train_size") is not None:
        raise ConfigError(f"dataset.train_size={values['train_size']}: must be null where per_class is given")


def check_batch_size(batch_size: int, examples: int, ranks: int = 1) -> None:
    """Check that a batch fits into the training set and can be shared equally by ``ranks`` processes.

    Raises:
        ConfigError: if ``batch_size`` is not between 1 and ``examples``, or is not a multiple of ``ranks``.
    """
    if not 1 <= batch_size <= examples:
        raise ConfigError(f"train.batch_size={batch_size}: must be between 1 and {examples}, the training examples")
    if batch_size % ranks:
        raise ConfigError(f"train.batch_size={batch_size}: must be a multiple of {ranks}, the processes of torchrun")


# For each key the next three functions return a pair: True if its value is valid, and in words, for the error message,
# which values are: the end of the sentence "must be ...".


def _common_checks(values: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
    size = values.get("train_size")
    return {
        "classes": (_is_int(values["classes"], 2), "a whole number >= 2"),
        "val_size": (_is_int(values["val_size"], 1), "a whole number >= 1"),
        "train_size": (size is None or _is_int(size, 1), "null or a whole number >= 1"),
        "split_seed": (_is_int(values["split_seed"], 0), "a whole number >= 0"),
    }


def _image_checks(values: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
    channels, per_class, noise = values["shape"][0], values["per_class"], values.get("label_noise")
    good_std = _are_numbers(values["std"], channels) and all(v > 0 for v in values["std"])
    augment = values.get("augment")
    return {
        "mean": (_are_numbers(values["mean"], channels), "a list with a number per channel"),
        "std": (good_std, "a list with a number > 0 per channel"),
        "per_class": (per_class is None or _is_int(per_class, 1), "null or a whole number >= 1"),
        "label_noise": (noise is None or (_is_number(noise) and 0 <= noise <= 1), "null or a share between 0 and 1"),
        "augment": (augment is None or isinstance(augment, dict), f"null or a mapping: {', '.join(AUGMENT_KEYS)}"),
    }


def _text_checks(values: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
    shift = values.get("shift")
    return {"shift": (shift is None or isinstance(shift, bool), "null, true or false")}


def _environment_checks(values: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
    counts = ("episodes", "learning_starts", "steps_per_update", "buffer_size", "target_update_interval")
    shares = ("gamma", "exploration_fraction", "exploration_final_eps")
    return {
        "name": (is_name(values["name"]), NAME_RULE),
        "environment": (isinstance(values["environment"], str), "the name of an environment of gymnasium"),
        "shape": (True, ""),
        "classes": (_is_int(values["classes"], 2), "a whole number >= 2"),
        **{key: (_is_int(values[key], 1), "a whole number >= 1") for key in counts},
        **{key: (_is_number(values[key]) and 0 <= values[key] <= 1, "a number between 0 and 1") for key in shares},
    }


def _check_augment(augment: Mapping[str, Any], pixels: int) -> None:
    crop, padding, flip, rotation, cutout = (augment.get(key) for key in AUGMENT_KEYS)
    checks = {
        "crop": (crop is None or (_is_int(crop, 0) and crop < pixels), f"null or a whole number below {pixels}"),
        "padding": (padding is None or (isinstance(padding, str) and padding in PADDINGS), " or ".join(PADDINGS)),
        "flip": (flip is None or isinstance(flip, bool), "true or false"),
        "rotation": (rotation is None or (_is_number(rotation) and 0 <= rotation <= 180), "null or degrees up to 180"),
        "cutout": (
            cutout is None or (_is_int(cutout, 0) and cutout <= pixels),
            f"null or a whole number up to {pixels}",
        ),
    }
    _raise_first_failure("dataset.augment", augment, checks)


def _raise_first_failure(group: str, values: Mapping[str, Any], checks: Mapping[str, tuple[bool, str]]) -> None:
    """Raise a ConfigError for the first key of ``values`` that is unknown or has an invalid value.

    Args:
        group: path of the values in the config, for the message.
        values: the values by key.
        checks: by known key, True if the value is valid, and the words after "must be" in the message.
    """
    for key, value in values.items():
        if key not in checks:
            raise ConfigError(f"{group}.{key}: unknown key; allowed: {', '.join(checks)}")
        good, wanted = checks[key]
        if not good:
            raise ConfigError(f"{group}.{key}={value}: must be {wanted}")


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(_is_number(v) for v in values)
