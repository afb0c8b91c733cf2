"""What every network checks of its arguments, so that a mistake is told before any training."""

from collections.abc import Sequence


def check_int(name: str, value: int, least: int) -> None:
    """Raise a ValueError unless ``value`` is a whole number >= ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: must be a whole number >= {least}")


def check_image(input_shape: Sequence[int], smallest: int = 1) -> None:
    """Raise a ValueError unless the network's input is an image of at least ``smallest`` x ``smallest`` pixels."""
    if len(input_shape) != 3:
        shape = tuple(input_shape)
        raise ValueError(f"reads images (channels, height, width), the data set has examples of shape {shape}")
    if min(input_shape[1:]) < smallest:
        height, width = input_shape[1:]
        raise ValueError(
            f"needs images of at least {smallest} x {smallest} pixels, the data set has {height} x {width}"
        )
