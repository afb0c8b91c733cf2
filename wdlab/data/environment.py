"""Environments of reinforcement learning in place of data sets: the checks of their ``configs/dataset`` files.

Nothing here imports an environment's library; :mod:`wdlab.control` does.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Environment:
    """An environment to learn in, in the place of the splits of a data set.

    Attributes:
        config: the values of the ``configs/dataset`` file.
        checksum: SHA-256 of the environment's name in gymnasium, which has its version.
    """

    config: Mapping[str, Any]
    checksum: str


def is_environment(config: Mapping[str, Any]) -> bool:
    """Return True if a ``configs/dataset`` file describes an environment and no data set."""
    return "environment" in config


def environment(config: Mapping[str, Any]) -> Environment:
    """Return the environment that a ``configs/dataset`` file describes."""
    return Environment(dict(config), hashlib.sha256(str(config["environment"]).encode()).hexdigest())
