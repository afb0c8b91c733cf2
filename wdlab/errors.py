"""Errors that end a run or a command, and the one line that is printed for them and for Hydra's errors."""

import dataclasses
import difflib
import re
import traceback


class WdlabError(Exception):
    """Base class of the errors that are printed as one line without a traceback.

    For a mistake in the input, the message names the key, the given value and what is allowed.
    """


class ConfigError(WdlabError):
    """A configuration value that cannot be used."""


class DataError(WdlabError):
    """A data set that is missing or differs from its config."""


class CheckpointError(WdlabError):
    """A checkpoint that is missing or damaged, belongs to another run or other data, or has lost its log lines."""


class RunFailed(WdlabError):
    """A run that failed or diverged, or a sweep with such runs."""


SWEEPER_KEYS = ("jobs", "trials", "search_seed")  # under hydra.sweeper
HIDDEN = ("basic", "submitit_local", "submitit_slurm")  # launchers of Hydra that wdlab has others for
NAME_RULE = "a name: letters, digits, dots, dashes, underscores"


def is_name(value: object) -> bool:
    """Return True if a config value is a name as ``NAME_RULE`` describes it and so can be part of a file name."""
    return isinstance(value, str) and re.fullmatch(r"\w[\w.-]*", value) is not None


def explain(error: BaseException) -> str | None:
    """Return the line to print for an error of this module, of Hydra, of OmegaConf or of YAML.

    Returns None for any other error, which is a bug and needs its traceback.
    """
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, WdlabError):
        return _one_line(str(error))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = [option for option in error.options if group != "hydra/launcher" or option not in HIDDEN]
        return f"{group}={name}: does not exist; available: {', '.join(options)}"
    refused = _unknown_key(error) or _refused_by_schema(error) or _several_values(error)
    if refused is not None:
        return refused
    if isinstance(error, OverrideParseException):
        reason = error.message.partition("\nSee ")[0].removeprefix(f"Error parsing override '{error.override}'")
        return _one_line(f"command line: {error.override}: cannot be read as key=value, {reason}")
    if isinstance(error, YAMLError):
        return _one_line(f"config file: {error}")
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
        return _one_line(f"{error}{cause}")
    if _raised_in_hydra(error):
        return _one_line(f"command line: {error}")
    return None


def _raised_in_hydra(error: BaseException) -> bool:
    """Return True if the code of Hydra or OmegaConf raised the exception.

    For some malformed overrides Hydra raises an exception that is not a HydraException.
    """
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [module for module in modules if module != "codecs"]  # Python's module that Hydra calls to read files
    return bool(modules) and modules[-1].split(".")[0] in ("hydra", "omegaconf")


def _unknown_key(error: BaseException) -> str | None:
    """Return the line to print for OmegaConf's error about an unknown key, None for other errors.

    The line names the allowed keys and the most similar one. An example of OmegaConf's own message is ``Key 'strenght'
    is not in struct``.
    """
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConfigAttributeError | ConfigKeyError):
        cause = cause.__cause__
    if cause is None or cause.full_key is None or cause.parent_node is None:
        return None
    if cause.full_key.startswith("regularizer.over_time.") and not {*cause.parent_node} - {"_target_", "name"}:
        return f"{cause.full_key}: no over_time has been chosen; first give regularizer/over_time=early, late, ..."
    siblings = [str(key) for key in cause.parent_node if key not in ("_target_", "_partial_", "name", "hydra")]
    return unknown_key(cause.full_key, siblings)


def unknown_key(full_key: str, siblings: list[str]) -> str:
    """Return the line to print for an unknown key, with the allowed keys and the most similar one.

    Args:
        full_key: the unknown key with its path in the config, such as ``regularizer.strenght``.
        siblings: the allowed keys at this place, without their path.
    """
    similar = difflib.get_close_matches(full_key.rpartition(".")[2], siblings, n=1)
    if full_key in SWEEPER_KEYS:
        similar = [f"hydra.sweeper.{full_key}"]
    hint = f"did you mean {similar[0]}? " if similar else ""
    return f"{full_key}: unknown key; {hint}allowed: {', '.join(siblings) or 'none'}"


def _refused_by_schema(error: BaseException) -> str | None:
    """Return the line to print if OmegaConf refuses a value of a settings class of ``wdlab.settings``, else None."""
    from omegaconf.errors import ConfigTypeError, ValidationError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConfigTypeError | ValidationError):
        cause = cause.__cause__
    if cause is None or not dataclasses.is_dataclass(cause.object_type):
        return None
    allowed = {field.name: field.metadata.get("allowed") for field in dataclasses.fields(cause.object_type)}
    if allowed.get(cause.key) is None:
        return None
    if isinstance(cause, ConfigTypeError):
        return f"{cause.full_key}: cannot be deleted; must be {allowed[cause.key]}"
    return _one_line(f"{cause.full_key}={cause.value}: must be {allowed[cause.key]}")


def _several_values(error: BaseException) -> str | None:
    """Return the line to print for Hydra's error about several values or an interval where a sweep is none, else None.

    An example of Hydra's own message is ``Sweep parameters 'seed=range(3)' requires --multirun``.
    """
    found = re.match(r"(?:Sweep parameters|Ambiguous value for argument) '(.*)'(?: requires --multirun|\n)", str(error))
    if found is None:
        return None
    if "interval(" in found[1]:
        return f"{found[1]}: is a search; give -m and hydra.sweeper.trials=16"
    return f"{found[1]}: several values are for a command line with -m; a list is key=[a,b], a text key='a,b'"


def _one_line(text: str) -> str:
    """Return the text as one line: each sequence of white space becomes one space."""
    return re.sub(r"\s+", " ", text).strip()


def describe_error(error: BaseException) -> str:
    """Return one line for an error for which ``explain`` returns None: its type and message, without its traceback."""
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r}) was called"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return "".join(traceback.format_exception_only(error)).strip()
