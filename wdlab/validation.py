"""Checks of a config before anything is trained. A failed check raises an error whose message is one line.

``session`` calls them for a single run, ``evaluate`` for the data set alone, and the sweeper for every job of a sweep.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from wdlab import data, metrics, process, settings
from wdlab.build import Parts, build_parts
from wdlab.control import UPDATES_PER_EPOCH, check_environment
from wdlab.engine import device, parallel
from wdlab.errors import CheckpointError, ConfigError, explain, unknown_key
from wdlab.interpolations import plain
from wdlab.records import wandb_mirror
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import SCIENTIFIC_KEYS
from wdlab.regularizers import Regularizer
from wdlab.schedules import Clock
from wdlab.settings import Settings

# the keys that a config may have; +key=value can add others
CONFIG_KEYS = (*SCIENTIFIC_KEYS, "fail_fast", "paths", "runtime", "logger", "hydra")


def check_config(config: Mapping[str, Any], here: bool = True, directory: RunDirectory | None = None) -> Parts:
    """Check everything in a config that a run uses, and return the objects built from it. Trains nothing.

    Args:
        config: the composed config of the run.
        here: False if the run will be trained on another machine, whose devices cannot be checked here.
        directory: the directory of the run; None to find it by the config's hash.

    Raises:
        WdlabError: for the first value or file that a run could not use.
        Exception: any error that the code of the network or of the method raises, SystemExit included.
    """
    for key in config:
        if key not in CONFIG_KEYS:
            raise ConfigError(unknown_key(str(key), list(CONFIG_KEYS)))
    checked = settings.read(config)
    device.check_runtime(checked.runtime, here)
    wandb_mirror.check_mode(checked.logger)
    data.check_description(config["dataset"])
    _check_numbers(config, "optimizer")
    _check_numbers(config, "lr_schedule")
    ranks = parallel.process_group().size
    if data.is_environment(config["dataset"]):
        check_environment(config["dataset"], checked.train, ranks)
    built = build_parts(config)
    changing = [schedule for schedule in built.regularizer.over_time if not schedule.is_constant]
    if changing and type(built.regularizer) is Regularizer:
        raise ConfigError(
            f"regularizer/over_time: {changing[0]!r} has no strength to change with "
            f"regularizer={config['regularizer']['name']}; give a method too, such as regularizer=l2"
        )
    if type(built.regularizer) is Regularizer and not built.regularizer.is_off:
        raise ConfigError(
            f"regularizer.strength={built.regularizer.strength}: decays nothing with "
            f"regularizer={config['regularizer']['name']}; give a method too, such as regularizer=l2"
        )
    _try_forward(built.model, config, checked, ranks)
    batch_size = checked.train.batch_size
    examples = data.check_data_and_batch_size(config["dataset"], checked.paths.data, batch_size, ranks)
    per_epoch = UPDATES_PER_EPOCH if examples is None else examples // batch_size
    _check_decays(built.regularizer, Clock(checked.train.steps, per_epoch, built.lr_factor))
    check_data_unchanged(config, directory or RunDirectory.of(config))
    return built


def _check_decays(regularizer: Regularizer, clock: Clock) -> None:
    """Raise a ConfigError if a method decays nothing in a run although its strength is not 0.

    Args:
        regularizer: the method, whose clock is set.
        clock: the length of the run and of an epoch.
    """
    regularizer.clock = clock
    try:
        regularizer.check_decays()
    except ValueError as error:
        raise ConfigError(f"regularizer.{error}") from error


def check_and_build(
    config: Mapping[str, Any], here: bool = True, directory: RunDirectory | None = None
) -> tuple[Parts | None, BaseException | None]:
    """Check a config as :func:`check_config` does, but return an error in the code of the network or of the method.

    Such an error is not a mistake in the config, so the caller records it with the run and continues with other runs.
    A call of ``sys.exit`` counts as one.

    Args:
        config: the composed config of the run.
        here: False if the run will be trained on another machine.
        directory: as in :func:`check_config`.

    Returns:
        The objects built from the config and None, or None and the error.

    Raises:
        WdlabError: for a mistake in the config.
    """
    try:
        return check_config(config, here, directory), None
    except (Exception, SystemExit) as error:
        if explain(error) is not None:
            raise
        return None, error


def error_in_code(
    config: Mapping[str, Any], here: bool = True, directory: RunDirectory | None = None
) -> BaseException | None:
    """Return the error that :func:`check_and_build` returns, without the built objects; a sweep keeps no networks."""
    return check_and_build(config, here, directory)[1]


def check_jobs(jobs: Iterable[tuple[Mapping[str, Any], RunDirectory]], here: bool = True) -> None:
    """Check the configs of a sweep's jobs. What only their seeds distinguishes is built once, and no network is kept.

    An error in the code of a network or of a method raises nothing here: it occurs again in the run, and is recorded.

    Args:
        jobs: the config of each job, with its interpolations resolved, and its run directory.
        here: False if the runs will be trained on another machine.

    Raises:
        WdlabError: for a mistake in a config.
    """
    checked: set[str] = set()
    for config, directory in jobs:
        without_seed = repr({key: value for key, value in config.items() if key != "seed"})
        if without_seed in checked:
            settings.read(config)
            check_data_unchanged(config, directory)
            continue
        error_in_code(config, here, directory)
        checked.add(without_seed)
        process.resume_collections()  # the first check has imported what torch imports with its first optimizer


def _check_numbers(config: Mapping[str, Any], section: str) -> None:
    """Check that the settings of an optimizer or a schedule are numbers, and that the learning rate is valid.

    Args:
        config: the config of the run.
        section: ``optimizer`` or ``lr_schedule``.

    Raises:
        ConfigError: for text or a group where a number is expected, for a learning rate that is missing, negative or
            not finite, and for a negative number in a schedule.
    """
    if section == "optimizer" and "lr" not in config[section]:
        raise ConfigError("optimizer.lr: is missing")
    for key, value in plain(config[section]).items():
        values = value if isinstance(value, list) else [value]
        if key not in ("name", "_target_") and any(isinstance(v, str | dict) for v in values):
            raise ConfigError(f"{section}.{key}={value}: must be a number")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if section == "lr_schedule" and any(isinstance(v, int | float) and not v >= 0 for v in values):
            raise ConfigError(f"{section}.{key}={value}: must be a number >= 0")
        if key == "lr" and not (is_number and 0 <= value < float("inf")):
            raise ConfigError(f"{section}.lr={value}: must be a finite number >= 0")


def _try_forward(model: torch.nn.Module, config: Mapping[str, Any], checked: Settings, ranks: int) -> None:
    """Check that the network's forward accepts a training batch, and the batch of the sharpness if it is measured.

    The network is not changed.

    Args:
        model: the network, on the CPU.
        config: the config of the run.
        checked: the settings of ``config``.
        ranks: the number of processes that share each training batch.

    Raises:
        ConfigError: if ``train.batch_size`` or ``train.sharpness_examples`` is too small for a batch norm.
        Exception: any error that the network's forward raises.
    """
    sizes = {"batch_size": checked.train.batch_size // ranks}
    if checked.train.sharpness_every is not None:
        sizes["sharpness_examples"] = checked.train.sharpness_examples or metrics.SHARPNESS_EXAMPLES
    for key, size in sizes.items():
        try:
            try:
                _forward_without_values(model, config, size)
            except Exception as error:  # such as a forward that reads values, or a network that cannot be copied
                if _needs_larger_batch(error):
                    raise
                loaded = data.load(config["dataset"], checked.paths.data, torch.device("cpu"))
                build_parts(config).model(loaded.train.examples(slice(0, min(size, 2)))[0])
        except ValueError as error:
            if _needs_larger_batch(error):
                raise ConfigError(f"train.{key}={config['train'][key]}: is too small, {error}") from error
            raise


def _forward_without_values(model: torch.nn.Module, config: Mapping[str, Any], size: int) -> None:
    """Run a copy of the network on a batch of ``size`` examples on the meta device, so that only shapes are computed.

    A copy is used because a forward may store tensors in the network, which would still be there in training.
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
    """Return True if the error is batch norm's complaint about a single value per channel."""
    return isinstance(error, ValueError) and str(error).startswith("Expected more than 1 value per channel")


def check_data_unchanged(
    config: Mapping[str, Any], directory: RunDirectory, state: Mapping[str, Any] | None = None
) -> None:
    """Check that a run which has a checkpoint is resumed or evaluated on the data set that it was begun on.

    Args:
        config: a config whose ``dataset`` and ``paths.data`` locate the present data set.
        directory: the directory of the run.
        state: the content of the run's checkpoint; None if it has not been read.

    Raises:
        CheckpointError: if the checksum of the present data differs from the one recorded with the run.
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
