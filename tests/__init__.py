"""The tests of wdlab."""

import wdlab  # before torch, whose threads it has wait for each other for a bounded time

__all__ = ["wdlab"]
