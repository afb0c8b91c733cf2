"""A run: its identity, its directory, its status, its lock, where it came from. Imports no torch.

Called by ``train`` to make runs, by ``analysis`` and ``scripts`` to find them. ``python -m wdlab.runs`` lists them, see
``wdlab.ledger``.

    results/runs/<dataset>-<model>-<optimizer>-<regularizer>-<hash>/
        config.yaml        the resolved config
        metrics.jsonl      one line per log point, append-only, authoritative
        checkpoint.pt      the newest; checkpoint.previous.pt the one before
        summary.json       the last line of metrics.jsonl, wall time
        provenance.json    git commit and diff, versions, devices, data checksum
        status.json        running / done / diverged / failed / interrupted
        lock               held by the process that has the run
"""

import fcntl
import functools
import json
import os
import re
import socket
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

import filelock
import yaml
from omegaconf import DictConfig, OmegaConf

from wdlab.errors import ConfigError, is_name
from wdlab.records.files import write_atomically
from wdlab.records.identity import CONFIGS, run_name
from wdlab.records.provenance import _ENVIRONMENT, code_version, package_versions, utc_now

TARGET_GROUPS = ("model", "optimizer", "regularizer", "regularizer/over_time", "lr_schedule")

FINISHED = ("done", "diverged")
_TAIL_BYTES = 16_384  # more than the longest line of metrics.jsonl
_LOCK_SECONDS = 0.2  # that a run waits for its lock: the ledger may look at it at that very moment
_UNUSABLE = (ValueError, TypeError, LookupError, OverflowError, RecursionError)  # what foreign bytes can lead to
_PARTS_KEPT = 4096  # of config files; a part is a few hundred bytes
_LONG_CONFIG = 16_384  # characters; libyaml overruns the stack in a text of which most is opening brackets
_FastLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TOP_LEVEL_KEY = re.compile(r"^(?=[^\W\d]\w*:)", re.MULTILINE)


def check_targets(config: DictConfig) -> None:
    """Raise a ConfigError for another class or function under the name of one of the choices in ``configs``.

    Runs are identified by these names, so a run of the other class would count as one that is finished already.
    """
    for group in TARGET_GROUPS:
        node = OmegaConf.select(config, group.replace("/", "."))
        if not isinstance(node, DictConfig):
            continue
        name, target = node.get("name"), node.get("_target_")
        usual = _target_of_choice(group, name) if is_name(name) else None
        if isinstance(target, str) and usual not in (None, target):
            key = group.replace("/", ".")
            raise ConfigError(
                f"{key}._target_={target}: needs a name of its own, {key}.name={name} is {usual}; give {key}.name too"
            )


@functools.cache
def _target_of_choice(group: str, name: str) -> str | None:
    path = CONFIGS / group / f"{name}.yaml"
    return OmegaConf.load(path).get("_target_") if path.is_file() else None


class RunDirectory:
    """The files of one run. Making the object touches nothing on disk."""

    def __init__(self, root: str | Path, name: str) -> None:
        self.name = name
        self.path = Path(root) / name
        self.metrics = self.path / "metrics.jsonl"
        self.config = self.path / "config.yaml"
        self.lock_file = self.path / "lock"
        self.checkpoint = self.path / "checkpoint.pt"
        self.previous_checkpoint = self.path / "checkpoint.previous.pt"

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """The directory of a config's run.

        Raises:
            ConfigError: if ``paths`` does not name folders, or as :func:`check_targets`.
        """
        if not isinstance(config["paths"], DictConfig):
            raise ConfigError(f"paths={config['paths']}: must be a group of keys")
        for key, path in config["paths"].items():
            if not isinstance(path, str) or not path:
                raise ConfigError(f"paths.{key}={path}: must be a folder")
        check_targets(config)
        return cls(config["paths"]["runs"], run_name(config))

    def create(self) -> None:
        """Make the directory."""
        self.path.mkdir(parents=True, exist_ok=True)

    def write_config(self, config: DictConfig) -> None:
        """Write the resolved ``config.yaml``."""
        resolved = OmegaConf.to_container(config, resolve=True)
        write_atomically(self.config, yaml.safe_dump(resolved, sort_keys=False))

    def read_config(self, *keys: str) -> dict[str, Any]:
        """What ``config.yaml`` says, as plain values. They are shared between runs: not to be changed.

        Args:
            keys: of the highest level, if only these are wanted.

        Raises:
            ConfigError: if it is not there, or is no mapping in YAML.
        """
        try:
            return _parse_config(self.config.read_text(), keys)
        except (OSError, yaml.YAMLError, AttributeError, *_UNUSABLE) as error:
            raise ConfigError(f"{self.config}: cannot be read, {' '.join(str(error).split())}") from error

    def lock(self) -> filelock.BaseFileLock:
        """The run's lock. It belongs to a process, so it is free again as soon as its owner is dead."""
        return filelock.FileLock(self.lock_file, timeout=_LOCK_SECONDS, poll_interval=_LOCK_SECONDS / 10)

    @property
    def held(self) -> bool:
        """Whether a process holds the lock.

        Makes no file, and shares the lock with others who look, for microseconds; a run that starts waits longer.
        """
        try:
            descriptor = os.open(self.lock_file, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # there are no locks here
            return False
        finally:
            os.close(descriptor)
        return False

    def remove_leftovers(self) -> None:
        """Remove what writing to a temporary file left behind when it was killed. For the owner of the lock."""
        for path in self.path.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    @property
    def status(self) -> str:
        """``new``, or the last status written: running, interrupted, done, diverged, failed."""
        return self.read("status.json").get("status", "new")

    @property
    def last_step(self) -> int:
        """The step of the newest whole line of ``metrics.jsonl``; 0 if there is none."""
        try:
            with self.metrics.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = file.read().split(b"\n")[:-1]
            return int(json.loads(lines[-1])["step"])
        except (OSError, *_UNUSABLE):
            return 0

    @property
    def finished(self) -> bool:
        """Whether nothing is left to compute: done or diverged."""
        return self.status in FINISHED

    def write_status(self, status: str, **details: Any) -> None:
        """Record the status with its time, process and host."""
        where = {"time": utc_now(), "pid": os.getpid(), "host": socket.gethostname()}
        self.write("status.json", {"status": status, **where, **details})

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the run, {} if it is not there, cannot be read, is half written or is no JSON object."""
        try:
            content = json.loads((self.path / name).read_text())
        except (OSError, *_UNUSABLE):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run, whole or not at all."""
        write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")

    def write_provenance(self, data_checksum: str, **machine: Any) -> bool:
        """Add this session to ``provenance.json``: which code, versions and machine computed from now on.

        Returns:
            Whether the ``machine`` values are those of the session before, so that an exact resume can be exact.
        """
        sessions = self.read("provenance.json").get("sessions", [])
        session = {"time": utc_now(), **machine, "code": code_version(), "versions": package_versions()}
        session |= {"environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}}
        self.write("provenance.json", {"data_checksum": data_checksum, "sessions": [*sessions, session]})
        return not sessions or all(sessions[-1].get(key, False) == value for key, value in machine.items())


def _parse_config(text: str, keys: Collection[str]) -> dict[str, Any]:
    """A mapping in YAML, key by key, since runs of a sweep share most parts of their configs, and parsing is slow."""
    try:
        parts = [
            _parse_yaml(part)
            for part in _TOP_LEVEL_KEY.split(text)
            if part and (not keys or part.partition(":")[0] in keys)
        ]
    except (ValueError, yaml.YAMLError):  # not written by ``write_config``: its parts do not stand for themselves
        return _parse_yaml(text)
    return {key: value for part in parts for key, value in part.items()}


@functools.lru_cache(_PARTS_KEPT)
def _parse_yaml(text: str) -> dict[str, Any]:
    parsed = yaml.load(text, Loader=_FastLoader if len(text) < _LONG_CONFIG else yaml.SafeLoader)
    if not isinstance(parsed, dict):
        raise ValueError("must be a mapping")
    return parsed
