"""Checks of a configuration before anything is trained, each with an error of one line.

The command lines call them for a single run, and the sweeper for every job of a sweep.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from wdlab import data, metrics, settings
from wdlab.build import Built, build
from wdlab.engine import device, parallel
from wdlab.errors import CheckpointError, ConfigError, explain, unknown_key
from wdlab.records import wandb_mirror
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import SCIENTIFIC_KEYS
from wdlab.settings import Settings

KEYS = (*SCIENTIFIC_KEYS, "fail_fast", "paths", "runtime", "logger", "hydra")  # of a config; +key=value adds others


def check_config(config: DictConfig, here: bool = True) -> Built:
    """Check everything in a config that a run uses, and return what it is built into. Trains nothing.

    Args:
        config: of the run.
        here: False if the run will be on another machine, whose devices cannot be checked here.

    Raises:
        WdlabError: in one line, for the first thing that a run could not use.
    """
    for key in config:
        if key not in KEYS:
            raise ConfigError(unknown_key(str(key), list(KEYS)))
    checked = settings.read(config)
    device.check(checked.runtime, here)
    wandb_mirror.check(checked.logger)
    data.check_description(config["dataset"])
    _check_numbers(config, "optimizer")
    _check_numbers(config, "lr_schedule")
    ranks = parallel.group().size
    built = build(config)
    _try_forward(built.model, config, checked, ranks)
    data.check(config["dataset"], checked.paths.data, checked.train.batch_size, ranks)
    check_data_is_the_same(config, RunDirectory.of(config))
    return built


def check_own_code(config: DictConfig, here: bool = True) -> tuple[Built | None, BaseException | None]:
    """Return what a config is built into, or else the error that the network's or the method's own code raises.

    A call of ``sys.exit`` counts as such an error. It is no mistake in the config, so it is recorded with the run and
    stops no other run. A mistake in the config is raised.

    Raises:
        WdlabError: as :func:`check_config` does.
    """
    try:
        return check_config(config, here), None
    except (Exception, SystemExit) as error:
        if explain(error) is not None:
            raise
        return None, error


def code_error(config: DictConfig, here: bool = True) -> BaseException | None:
    """Return the error of :func:`check_own_code` alone; a sweep keeps none of the networks that it checks."""
    return check_own_code(config, here)[1]


def _check_numbers(config: DictConfig, section: str) -> None:
    """Refuse words where torch or a schedule expects numbers, and a learning rate that is missing or negative."""
    if section == "optimizer" and "lr" not in config[section]:
        raise ConfigError("optimizer.lr: is missing")
    for key, value in OmegaConf.to_container(config[section], resolve=True).items():
        values = value if isinstance(value, list) else [value]
        if key not in ("name", "_target_") and any(isinstance(v, str | dict) for v in values):
            raise ConfigError(f"{section}.{key}={value}: must be a number")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if section == "lr_schedule" and is_number and not value >= 0:
            raise ConfigError(f"{section}.{key}={value}: must be a number >= 0")
        if key == "lr" and not (is_number and 0 <= value < float("inf")):
            raise ConfigError(f"{section}.lr={value}: must be a finite number >= 0")


def _try_forward(model: torch.nn.Module, config: DictConfig, checked: Settings, ranks: int) -> None:
    """Put batches through a network. It and the random state stay unchanged.

    Raises:
        ConfigError: if a batch is too small for the network.
        Exception: what the network's own forward raises.
    """
    sizes = {"batch_size": checked.train.batch_size // ranks}
    if checked.train.sharpness_every is not None:
        sizes["sharpness_examples"] = checked.train.sharpness_examples or metrics.SHARPNESS_EXAMPLES
    for key, size in sizes.items():
        try:
            try:
                _forward_without_values(model, config, size)
            except Exception as error:  # it reads a value, say, or cannot be copied
                if _needs_larger_batch(error):
                    raise
                loaded = data.load(config["dataset"], checked.paths.data, torch.device("cpu"))
                build(config).model(loaded.train.examples(slice(0, min(size, 2)))[0])
        except ValueError as error:
            if _needs_larger_batch(error):
                raise ConfigError(f"train.{key}={config['train'][key]}: is too small, {error}") from error
            raise


def _forward_without_values(model: torch.nn.Module, config: DictConfig, size: int) -> None:
    """Put a batch that has a shape alone through a copy of the network, so that nothing is computed.

    The copy is for networks whose forward keeps something: training would find it there.
    """
    shadows = {
        id(tensor): torch.empty_like(tensor, device="meta") for tensor in (*model.parameters(), *model.buffers())
    }
    for parameter in model.parameters():
        shadows[id(parameter)] = torch.nn.Parameter(shadows[id(parameter)], parameter.requires_grad)
    shadow = copy.deepcopy(model, shadows)
    kind = torch.int64 if len(config["dataset"]["shape"]) == 1 else torch.float32
    shadow(torch.empty(max(1, size), *config["dataset"]["shape"], dtype=kind, device="meta"))


def _needs_larger_batch(error: Exception) -> bool:
    """Return True for the error of batch norm that it has a single value per channel."""
    return isinstance(error, ValueError) and str(error).startswith("Expected more than 1 value per channel")


def check_data_is_the_same(config: DictConfig, directory: RunDirectory, state: Mapping[str, Any] | None = None) -> None:
    """Refuse to resume a run, or to measure it, on other data than it was begun on.

    Args:
        config: its ``dataset`` and ``paths.data`` are the data of today.
        directory: of the run.
        state: the run's checkpoint, if that has been read.

    Raises:
        CheckpointError: if the run has a checkpoint, and the data is not that of its records.
    """
    if not (state or directory.checkpoint.exists() or directory.previous_checkpoint.exists()):
        return
    then = (state or {}).get("data_checksum") or directory.read("provenance.json").get("data_checksum")
    now = data.checksum(config["dataset"], config["paths"]["data"])
    if then not in (None, now):
        raise CheckpointError(
            f"{directory.path}: was begun on other data than paths.data={config['paths']['data']} holds now "
            f"(dataset={config['dataset']['name']}, sha256 {str(then)[:12]} then, {now[:12]} now); give it that data "
            "again, or delete the run to begin anew"
        )
