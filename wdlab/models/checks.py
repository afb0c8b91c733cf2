"""Checks of a network's arguments, so that a mistake is reported before any training."""

from collections.abc import Sequence


def check_int(name: str, value: int, least: int) -> None:
    """Check that ``value`` is a whole number >= ``least``, and not a bool.

    Raises:
        ValueError: if the check fails. The message begins with ``name``, the name of the argument.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: must be a whole number >= {least}")


def check_image(input_shape: Sequence[int], smallest: int = 1) -> None:
    """Check that a network's input is an image of at least ``smallest`` x ``smallest`` pixels.

    Args:
        input_shape: shape of one example; for an image (channels, height, width).
        smallest: smallest height and width that the network can process.

    Raises:
        ValueError: if the shape does not have three entries, or if the image is too small.
    """
    if len(input_shape) != 3:
        shape = tuple(input_shape)
        raise ValueError(f"reads images (channels, height, width), the data set has examples of shape {shape}")
    if min(input_shape[1:]) < smallest:
        height, width = input_shape[1:]
        raise ValueError(
            f"needs images of at least {smallest} x {smallest} pixels, the data set has {height} x {width}"
        )
