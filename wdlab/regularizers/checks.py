"""Checks of what a method is given: numbers, choices, the kind of optimizer."""

import math
from typing import Any


def check_strength(strength: float) -> float:
    """``strength`` if it is a finite number >= 0; otherwise a ValueError that says so."""
    return check_number("strength", strength, lowest=0.0)


def check_number(name: str, value: float, lowest: float = -math.inf, above: float = -math.inf) -> float:
    """``value`` if it is a finite number, at least ``lowest`` and greater than ``above``; otherwise a ValueError."""
    limit = f" >= {lowest:g}" if lowest > -math.inf else f" > {above:g}" if above > -math.inf else ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}={value!r}: must be a number{limit}")
    if not math.isfinite(value) or value < lowest or value <= above:
        raise ValueError(f"{name}={value}: must be a finite number{limit}")
    return value


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """``value`` if it is one of ``allowed``; otherwise a ValueError that lists them."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}")
    return value


def is_adam(group: dict[str, Any]) -> bool:
    """Whether a group of an optimizer is of Adam's kind: two moments, as torch's Adam and AdamW keep them."""
    return "betas" in group and "amsgrad" in group


def is_sgd(group: dict[str, Any]) -> bool:
    """Whether a group of an optimizer is of SGD's kind, with torch's momentum and dampening."""
    return "momentum" in group and "dampening" in group
