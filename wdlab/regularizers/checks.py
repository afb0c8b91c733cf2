"""Checks of the arguments of methods: numbers, choices, the kind of optimizer."""

import math
from typing import Any

from torch import Tensor


def check_strength(strength: Any) -> float:
    """Return ``strength`` as a Python number; raise a ValueError unless it is a finite number >= 0."""
    return check_number("strength", strength, lowest=0.0)


def check_number(name: str, value: Any, lowest: float = -math.inf, above: float = -math.inf) -> float:
    """Return ``value`` as a Python number; NumPy scalars and one-element tensors are converted.

    Args:
        name: name of the argument, for the error message.
        value: the argument.
        lowest: smallest allowed number.
        above: number that ``value`` must exceed.

    Raises:
        ValueError: unless ``value`` is a finite number, at least ``lowest`` and greater than ``above``.
    """
    value = as_number(value)
    limit = f" >= {lowest:g}" if lowest > -math.inf else f" > {above:g}" if above > -math.inf else ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}={value!r}: must be a number{limit}")
    if not math.isfinite(value) or value < lowest or value <= above:
        raise ValueError(f"{name}={value}: must be a finite number{limit}")
    return value


def as_number(value: Any) -> Any:
    """Return a NumPy scalar or a one-element tensor as a Python number; anything else unchanged.

    torch's optimizers accept both as hyperparameters, and a user may put them into a group at any time. Reading a
    tensor from a device waits for the device.
    """
    if type(value) is float or not hasattr(value, "item"):
        return value
    size = value.numel() if isinstance(value, Tensor) else value.size
    return value.item() if size == 1 else value


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return ``value``; raise a ValueError that lists ``allowed`` if ``value`` is not in ``allowed``.

    Args:
        name: name of the argument, for the error message.
        value: the argument.
        allowed: the allowed values.
    """
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return ``value``; raise a ValueError unless it is True or False. ``name`` is for the error message."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: must be true or false")
    return value


def is_adam_group(group: dict[str, Any]) -> bool:
    """Return True if a group of an optimizer has the keys of torch's Adam and AdamW, ``betas`` and ``amsgrad``."""
    return "betas" in group and "amsgrad" in group


def is_sgd_group(group: dict[str, Any]) -> bool:
    """Return True if a group of an optimizer has the keys of torch's SGD, ``momentum`` and ``dampening``."""
    return "momentum" in group and "dampening" in group
