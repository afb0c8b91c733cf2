"""Construction of the objects that a run trains with from its config: model, optimizer, regularizer, schedule, data."""

import contextlib
import functools
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_method, instantiate
from torch import nn

from wdlab import data
from wdlab.engine import device, fused
from wdlab.engine.experiment import Experiment
from wdlab.errors import ConfigError
from wdlab.interpolations import plain
from wdlab.models.wrappers import unwrapped
from wdlab.regularizers import Regularizer
from wdlab.schedules import Clock
from wdlab.settings import read_runtime


@dataclass(frozen=True)
class Parts:
    """The objects that a run's config describes, on the CPU.

    ``model, optimizer, regularizer, lr_factor = built`` unpacks all but the random state.

    Attributes:
        model: the network, with its initial weights.
        optimizer: the optimizer of all parameters of ``model``.
        regularizer: the regularizer of ``model``, not attached to the optimizer.
        lr_factor: the learning-rate schedule, see ``wdlab.schedules``.
        random_state: the state of torch's CPU generator after the objects were built; training starts from it.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    regularizer: Regularizer
    lr_factor: Callable[[int, int, int], float]
    random_state: torch.Tensor

    def __iter__(self) -> Iterator[Any]:
        """Iterate over model, optimizer, regularizer and lr_factor, in this order."""
        return iter((self.model, self.optimizer, self.regularizer, self.lr_factor))

    def __getitem__(self, index: int) -> Any:
        """Return the part at position ``index`` of the iteration order."""
        return tuple(self)[index]


def build_parts(config: Mapping[str, Any]) -> Parts:
    """Build the model, optimizer, regularizer and learning-rate schedule of a config.

    The initial weights depend on ``seed``, ``model`` and the data set's shape and classes only. Optimizer and
    regularizer refer to the model's parameters, so ``model.to(device)`` moves the parameters for all three.

    Args:
        config: the composed config of a run.

    Raises:
        ConfigError: if a part cannot be built. The message names the key, the value and what is allowed.
    """
    torch.manual_seed(config["seed"])
    shape, classes = list(config["dataset"]["shape"]), config["dataset"]["classes"]
    model = unwrapped(_instantiate(config, "model", input_shape=shape, classes=classes))
    optimizer = _instantiate(config, "optimizer", params=list(model.parameters()))
    regularizer = _instantiate(config, "regularizer", model=model)
    with _as_config_error("regularizer"):
        regularizer.clock = Clock(config["train"]["steps"], 1)  # the loop sets the true length of an epoch
        with warnings.catch_warnings(action="ignore"):  # where nothing is decayed, ``validation`` raises an error
            regularizer.attach(optimizer).remove()
    lr_factor = _instantiate(config, "lr_schedule")
    with _as_config_error("lr_schedule"):
        lr_factor(0, config["train"]["steps"], 1)
    return Parts(model, optimizer, regularizer, lr_factor, torch.get_rng_state())


def _instantiate(config: Mapping[str, Any], key: str, **arguments: Any) -> Any:
    """Return the object that ``config[key]`` describes; ``arguments`` are passed to its class or function."""
    with _as_config_error(key):
        return instantiate_node(plain(config[key]), **arguments)


def instantiate_node(node: dict[str, Any], **arguments: Any) -> Any:
    """Return the object that a config node describes.

    Args:
        node: ``_target_`` (dotted name of a class or function) and keyword arguments, which may be nodes themselves.
            ``name`` and arguments that are None are not passed on. With ``_partial_: true`` the result is a partial
            function.
        arguments: further keyword arguments.

    Raises:
        ValueError: if ``_target_`` is missing or not a string.
    """
    target = node.get("_target_")
    if not isinstance(target, str):
        raise ValueError(f"_target_={target}: must be the name of a class or a function")
    given = _arguments(node)
    options = {key: value for key, value in given.items() if key not in ("_target_", "_partial_")}
    if node.get("_partial_"):  # a partial function made by Hydra takes 60 microseconds more per call
        return functools.partial(get_method(target), **options, **arguments)
    if target in _instantiated and _is_flat(options):
        try:
            return get_method(target)(**options | arguments)
        except Exception as error:  # the same error as Hydra's
            raise InstantiationException(f"Error in call to target '{target}':\n{error!r}") from error
    made = instantiate(given, _convert_="all", **arguments)
    _instantiated.add(target)
    return made


# Targets that Hydra has instantiated in this process, and thereby found permitted. They are called directly from then
# on, which takes a tenth of the time: 0.2 ms instead of 3.5 for the parts of an MLP.
_instantiated: set[str] = set()


def _is_flat(options: dict[str, Any]) -> bool:
    """Return True if options contain no nested nodes and no keys with a meaning to Hydra, such as ``_args_``."""
    values = [item for value in options.values() for item in (value if isinstance(value, list) else [value])]
    return not any(key.startswith("_") for key in options) and not any(isinstance(v, dict | list) for v in values)


def _arguments(node: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a node without ``name`` and without None values, in nested nodes too. Lists are copied."""
    kept = {key: value for key, value in node.items() if key != "name" and value is not None}
    copied = {key: list(value) if isinstance(value, list) else value for key, value in kept.items()}
    return {key: _arguments(value) if isinstance(value, dict) else value for key, value in copied.items()}


@contextlib.contextmanager
def _as_config_error(key: str) -> Iterator[None]:
    """Context manager that raises an error in the construction of an object as a ConfigError whose message is one line.

    This concerns ValueError, TypeError and Hydra's InstantiationException. Other errors pass unmodified.

    Args:
        key: the key of the config whose object is built inside; it begins the line.
    """
    try:
        yield
    except Exception as error:
        from_hydra = isinstance(error, InstantiationException)
        cause = error.__cause__ if from_hydra and isinstance(error.__cause__, ValueError | TypeError) else error
        if not from_hydra and not isinstance(cause, ValueError | TypeError):
            raise
        line = str(cause).strip().splitlines()[0]
        if from_hydra and cause is error and line.startswith("Error in call to") and error.__cause__ is not None:
            line = "".join(traceback.format_exception_only(error.__cause__)).splitlines()[0]
        if line.startswith("Error locating target"):
            line = _why_not_located(line, error.__cause__)
        lacking = re.search(r"missing \d+ required (?:positional|keyword-only) arguments?: '(\w+)'", line)
        if lacking:
            line = f"{lacking[1]}=None: must be given"
        inner = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)  # Hydra's path of a nested node
        key = f"{key}.{inner[1]}" if inner else key
        joined = "." if line.split("=")[0].isidentifier() and "=" in line else ": "
        raise ConfigError(f"{key}{joined}{line}") from error


def _why_not_located(line: str, cause: BaseException | None) -> str:
    """Return Hydra's line about a ``_target_`` that does not exist, with the reason from the error that caused it."""
    reasons = str(cause or "").strip().splitlines()[1:]  # the first line repeats the target
    return f"{line.partition(', set env var')[0]}: {' '.join(reasons) or 'it does not exist'}"


def build_experiment(
    config: Mapping[str, Any],
    neighbour: Experiment | None = None,
    stacked: int = 0,
    threads: int | None = None,
    built: Parts | None = None,
) -> Experiment:
    """Build everything that a run trains with, placed on the device that it trains on.

    Args:
        config: the composed config of the run.
        neighbour: another experiment in this process with the same data set and runtime settings, whose ``data`` and
            ``machine`` are used; None loads the data and sets up the machine.
        stacked: the number of runs that are trained side by side; 0 for a run that is trained alone.
        threads: the number of CPU threads of the run's previous session, see :func:`wdlab.engine.device.set_up`.
        built: the objects that the check of the config has built; None builds them here.
    """
    if built is None:
        built = build_parts(config)
    else:  # the state after the build; otherwise dropout's masks depend on what the checks drew
        torch.manual_seed(config["seed"])
        torch.set_rng_state(built.random_state)
    if neighbour is None:
        examples = predictions_per_batch(config) * max(1, stacked)
        machine = device.set_up(read_runtime(config), built.model, bool(stacked), examples, threads)
        loaded = data.load(config["dataset"], config["paths"]["data"], machine.device)
    else:
        machine, loaded = neighbour.machine, neighbour.data
    machine.place(built.model)
    fused.choose_step(built.model, built.optimizer, machine.fused)
    return Experiment(built.model, loaded, built.optimizer, built.regularizer, built.lr_factor, machine, config["seed"])


def predictions_per_batch(config: Mapping[str, Any]) -> int:
    """Return the number of predictions in a training batch: one per image, or one per character of each text."""
    shape = config["dataset"]["shape"]
    return config["train"]["batch_size"] * (shape[0] if len(shape) == 1 else 1)
