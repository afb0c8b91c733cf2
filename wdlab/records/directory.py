"""A run's directory: its files, its status and its lock. Imports no torch.

Called by ``train`` to make runs, by ``analysis`` and ``scripts`` to find them. ``python -m wdlab.runs`` lists them.

    results/runs/<dataset>-<model>-<optimizer>-<regularizer>-<hash>/
        config.yaml        the resolved config, for people to read; authoritative
        config.json        the same, already parsed, which reads a hundred times as fast
        metrics.jsonl      one line per log point, append-only, authoritative
        checkpoint.pt      the newest; checkpoint.previous.pt the one before
        summary.json       the last line of metrics.jsonl, wall time
        provenance.json    git commit and diff, versions, devices, data checksum
        status.json        running / done / diverged / failed / interrupted
        lock               held by the process that trains the run
"""

import fcntl
import functools
import hashlib
import json
import os
import socket
from collections.abc import Mapping
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
_LOCK_SECONDS = 0.2  # how long a run waits for its lock; ``held`` shares the lock for microseconds
_UNUSABLE = (ValueError, TypeError, LookupError, OverflowError, RecursionError)  # raised by parsing damaged files


def check_targets(config: DictConfig) -> None:
    """Check that each choice from ``configs`` has kept its own class or function.

    Runs are identified by the names of choices. Under the name of a choice, a run of another class would be taken for
    a run that is already finished.

    Raises:
        ConfigError: if a name is that of a choice and ``_target_`` is not.
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
    """Return the ``_target_`` of a choice in ``configs``, or None if it has none or does not exist."""
    path = CONFIGS / group / f"{name}.yaml"
    return OmegaConf.load(path).get("_target_") if path.is_file() else None


class RunDirectory:
    """The files of one run. Creating the object touches nothing on disk."""

    def __init__(self, root: str | Path, name: str) -> None:
        self.name = name
        self.path = Path(root) / name
        self.metrics = self.path / "metrics.jsonl"
        self.config = self.path / "config.yaml"
        self.parsed_config = self.path / "config.json"
        self.lock_file = self.path / "lock"
        self.checkpoint = self.path / "checkpoint.pt"
        self.previous_checkpoint = self.path / "checkpoint.previous.pt"

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """Return the directory of a config's run.

        Raises:
            ConfigError: if ``paths`` does not name folders, or for the reasons of :func:`check_targets`.
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
        """Write the resolved config as ``config.yaml``, and parsed as ``config.json``."""
        resolved = OmegaConf.to_container(config, resolve=True)
        text = yaml.safe_dump(resolved, sort_keys=False)
        write_atomically(self.config, text)
        self.write(self.parsed_config.name, {"sha256 of config.yaml": _checksum(text.encode()), "config": resolved})

    def read_config(self) -> dict[str, Any]:
        """Return the content of ``config.yaml`` as plain values.

        They are taken from ``config.json`` if that was written for exactly this text of ``config.yaml``. So an edited
        ``config.yaml`` counts at once, and a run without a ``config.json`` can be read, though slowly.

        Raises:
            ConfigError: if ``config.yaml`` is missing or is not a mapping in YAML.
        """
        try:
            text = self.config.read_bytes()
            parsed = self.read(self.parsed_config.name)
            if parsed.get("sha256 of config.yaml") == _checksum(text):
                return parsed["config"]
            config = yaml.safe_load(text)
            if not isinstance(config, dict):
                raise ValueError("must be a mapping")
        except (OSError, yaml.YAMLError, AttributeError, *_UNUSABLE) as error:
            raise ConfigError(f"{self.config}: cannot be read, {' '.join(str(error).split())}") from error
        return config

    def lock(self) -> filelock.BaseFileLock:
        """Return the run's lock. The system frees it when the process that holds it ends, however it ends."""
        return filelock.FileLock(self.lock_file, timeout=_LOCK_SECONDS, poll_interval=_LOCK_SECONDS / 10)

    @property
    def held(self) -> bool:
        """Return True while a process holds the lock.

        No file is made. Reading this takes the lock as a shared one for microseconds, and a run that starts in this
        moment waits for longer than that.
        """
        try:
            descriptor = os.open(self.lock_file, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a filesystem without locks
            return False
        finally:
            os.close(descriptor)
        return False

    def remove_leftovers(self) -> None:
        """Remove the temporary files of a process that was killed while writing. Only for the holder of the lock."""
        for path in self.path.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    @property
    def status(self) -> str:
        """The last status written: running, interrupted, done, diverged or failed; ``new`` if none was."""
        return self.read("status.json").get("status", "new")

    @property
    def last_step(self) -> int:
        """The step of the last complete line of ``metrics.jsonl``; 0 if there is none."""
        try:
            with self.metrics.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = file.read().split(b"\n")[:-1]
            return int(json.loads(lines[-1])["step"])
        except (OSError, *_UNUSABLE):
            return 0

    @property
    def finished(self) -> bool:
        """Return True if nothing is left to compute: the run is done or diverged."""
        return self.status in FINISHED

    def write_status(self, status: str, **details: Any) -> None:
        """Write the status with the time, the process and the host."""
        where = {"time": utc_now(), "pid": os.getpid(), "host": socket.gethostname()}
        self.write("status.json", {"status": status, **where, **details})

    def read(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the run; {} if it is missing, unreadable, incomplete, or not a JSON object."""
        try:
            content = json.loads((self.path / name).read_text())
        except (OSError, *_UNUSABLE):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run, completely or not at all."""
        write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")

    def write_provenance(self, data_checksum: str, **machine: Any) -> bool:
        """Add this session to ``provenance.json``: the code, versions and machine that compute from now on.

        Args:
            data_checksum: checksum of the data set.
            machine: whatever about the machine can change numbers.

        Returns:
            True if the ``machine`` values equal those of the session before, so that a resume can be exact.
        """
        sessions = self.read("provenance.json").get("sessions", [])
        session = {"time": utc_now(), **machine, "code": code_version(), "versions": package_versions()}
        session |= {"environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}}
        self.write("provenance.json", {"data_checksum": data_checksum, "sessions": [*sessions, session]})
        return not sessions or all(sessions[-1].get(key, False) == value for key, value in machine.items())


def _checksum(text: bytes) -> str:
    """Return the SHA-256 of a text, by which an edited ``config.yaml`` is noticed."""
    return hashlib.sha256(text).hexdigest()
