"""Checks of a configuration before anything is trained, each with an error of one line.

Called by the command lines for a single run and by the sweeper for every job of a sweep.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from wdlab import data, metrics
from wdlab.build import build
from wdlab.engine import device, parallel
from wdlab.errors import CheckpointError, ConfigError, explain
from wdlab.records import wandb_mirror
from wdlab.records.directory import RunDirectory
from wdlab.records.identity import SCIENTIFIC_KEYS


def check_config(config: DictConfig, here: bool = True) -> None:
    """Raise a WdlabError, in one line, for anything in the config that a run could not use. Trains nothing.

    ``here`` is whether the run will be on this machine, and so its devices matter.
    """
    seed = config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed}: must be a whole number between 0 and {2**32 - 1}")
    _check_keys(config)
    if not isinstance(config.get("fail_fast"), bool):
        raise ConfigError(f"fail_fast={config.get('fail_fast')}: must be true or false")
    data.check_description(config["dataset"])
    _check_numbers(config, "optimizer")
    _check_numbers(config, "lr_schedule")
    check_train(config["train"])
    device.check(config["runtime"], here)
    wandb_mirror.check(config["logger"])
    ranks = parallel.group().size
    _try_forward(config, ranks)
    data.check(config["dataset"], config["paths"]["data"], config["train"]["batch_size"], ranks)
    check_data_is_the_same(config, RunDirectory.of(config))


def code_error(config: DictConfig, here: bool = True) -> BaseException | None:
    """What the network's or the method's own code raises while a config is checked, a call of sys.exit too.

    That is no mistake in the config, so it is recorded with the run and stops no other; such a mistake is raised.

    Raises:
        WdlabError: as ``check`` does.
    """
    try:
        check_config(config, here)
    except (Exception, SystemExit) as error:
        if explain(error) is not None:
            raise
        return error
    return None


def _check_keys(config: DictConfig) -> None:
    """Refuse keys that nothing reads, which only ``+key=value`` can add."""
    known = {
        "": (*SCIENTIFIC_KEYS, "fail_fast", "paths", "runtime", "logger", "hydra"),
        "train": TRAIN_KEYS,
        "runtime": device.KEYS,
        "logger": wandb_mirror.KEYS,
        "paths": ("data", "runs"),
    }
    for section, allowed in known.items():
        for key in config[section] if section else config:
            if key not in allowed:
                raise ConfigError(f"{section}{'.' * bool(section)}{key}: unknown key; allowed: {', '.join(allowed)}")


def _check_numbers(config: DictConfig, section: str) -> None:
    """Refuse words where torch or a schedule expects numbers; the learning rate must be there, and >= 0."""
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


def _try_forward(config: DictConfig, ranks: int) -> None:
    """Raise a ConfigError if a batch is too small for the network, and whatever its forward raises by itself."""
    sizes = {"batch_size": config["train"]["batch_size"] // ranks}
    if config["train"]["sharpness_every"] is not None:
        sizes["sharpness_examples"] = config["train"]["sharpness_examples"] or metrics.SHARPNESS_EXAMPLES
    model = build(config)[0]
    for key, size in sizes.items():
        try:
            try:
                _forward_without_values(model, config, size)
            except Exception as error:  # it reads a value, say, or keeps a tensor that is no buffer
                if _wants_more_examples(error):
                    raise
                loaded = data.load(config["dataset"], config["paths"]["data"], torch.device("cpu"))
                build(config)[0](loaded.train.examples(slice(0, min(size, 2)))[0])
        except ValueError as error:
            if _wants_more_examples(error):
                raise ConfigError(f"train.{key}={config['train'][key]}: is too small, {error}") from error
            raise


def _forward_without_values(model: torch.nn.Module, config: DictConfig, size: int) -> None:
    """Put a batch through the network that has shapes alone, so that nothing is computed."""
    held = (*model.named_parameters(), *model.named_buffers())
    shadow = {name: torch.empty_like(tensor, device="meta") for name, tensor in held}
    kind = torch.int64 if len(config["dataset"]["shape"]) == 1 else torch.float32
    batch = torch.empty(max(1, size), *config["dataset"]["shape"], dtype=kind, device="meta")
    torch.func.functional_call(model, shadow, (batch,))


def _wants_more_examples(error: Exception) -> bool:
    """Whether this is what batch norm raises for a single value per channel."""
    return isinstance(error, ValueError) and str(error).startswith("Expected more than 1 value per channel")


def check_data_is_the_same(config: DictConfig, directory: RunDirectory, state: Mapping[str, Any] | None = None) -> None:
    """Refuse to go on with a run, or to measure it, on other data than it was begun on.

    Args:
        config: whose ``dataset`` and ``paths.data`` it would go on with.
        directory: of the run.
        state: its checkpoint, if that has been read.

    Raises:
        CheckpointError: if it has a checkpoint, and the data is not that of its records.
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


MOST = 10**12
WHOLE = ("steps", "batch_size", "log_every", "eval_every")
WHOLE_OR_NULL = ("sharpness_every", "sharpness_examples")
NUMBER_OR_NULL: dict[str, tuple[Callable[[float], bool], str]] = {
    "clip_norm": (lambda norm: norm > 0, "> 0"),
    "label_smoothing": (lambda share: 0 <= share < 1, "from 0 to below 1"),
    "average_decay": (lambda decay: 0 < decay < 1, "between 0 and 1"),
}
TRAIN_KEYS = (*WHOLE, *NUMBER_OR_NULL, *WHOLE_OR_NULL)


def check_train(config: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a ``train`` value that is no whole number from 1 to ``MOST``, no norm or no share."""
    for key in (*WHOLE, *WHOLE_OR_NULL):
        value = config[key]
        if value is None and key in WHOLE_OR_NULL:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
            null = "null or " if key in WHOLE_OR_NULL else ""
            raise ConfigError(f"train.{key}={value}: must be {null}a whole number between 1 and {MOST}")
    for key, (allowed, words) in NUMBER_OR_NULL.items():
        value = config[key]
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not allowed(value):
            raise ConfigError(f"train.{key}={value}: must be null or a number {words}")
