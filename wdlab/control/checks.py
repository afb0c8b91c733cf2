"""Checks of a run in an environment before anything is trained."""

import importlib.util
from collections.abc import Mapping
from typing import Any

from wdlab.errors import ConfigError
from wdlab.settings import TrainSettings

PACKAGES = ("stable_baselines3", "gymnasium")
INSTALL = ".venv/bin/python -m pip install -c requirements.lock -e '.[dev,rl]'"  # in a checkout
OF_DATA_SETS = ("label_smoothing", "average_decay", "sharpness_every", "full_gradient_every")  # settings of ``train``


def check_environment(config: Mapping[str, Any], settings: TrainSettings, ranks: int = 1) -> None:
    """Check that the packages of the extra ``rl`` are there, and that they have the environment as it is described.

    Args:
        config: the values of a ``configs/dataset`` file of an environment, whose types were checked.
        settings: the settings of ``train``.
        ranks: the number of processes that share the run.

    Raises:
        ConfigError: if a package is missing, the environment does not exist, has another shape or number of actions, or
            a setting is given that only training on a data set has.
    """
    name, environment = config["name"], config["environment"]
    if missing := [package for package in PACKAGES if importlib.util.find_spec(package) is None]:
        raise ConfigError(f"dataset={name}: needs {missing[0].replace('_', '-')}; in the checkout: {INSTALL}")
    for key in OF_DATA_SETS:
        if getattr(settings, key) is not None:
            raise ConfigError(f"train.{key}={getattr(settings, key)}: must be null in an environment")
    if ranks > 1:
        raise ConfigError(f"dataset={name}: torchrun cannot share a run in an environment")
    if settings.batch_size > config["learning_starts"]:
        raise ConfigError(
            f"train.batch_size={settings.batch_size}: must be at most dataset.learning_starts="
            f"{config['learning_starts']}, the steps before the first update"
        )
    import gymnasium

    try:
        made = gymnasium.make(environment)
    except gymnasium.error.Error as error:
        raise ConfigError(f"dataset.environment={environment}: gymnasium has none, {error}") from error
    actions = getattr(made.action_space, "n", None)
    if actions is None:
        raise ConfigError(f"dataset.environment={environment}: must have discrete actions")
    for key, given, found in (
        ("shape", list(config["shape"]), [1, 1, *made.observation_space.shape]),
        ("classes", config["classes"], int(actions)),
    ):
        if given != found:
            raise ConfigError(f"dataset.{key}={given}: must be {found} for {environment}")
