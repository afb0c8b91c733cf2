"""A run's directory: its files, its status and its lock. Imports no torch.

Used by ``session`` and ``sweeps`` to create run directories, and by ``analysis`` and ``scripts`` to read them.
``python -m wdlab.runs`` lists all runs.

    results/runs/<dataset>-<model>-<optimizer>-<regularizer>-<hash>/
        config.yaml        the config with interpolations resolved; authoritative
        config.json        a copy of the config with the checksum of config.yaml; read a hundred times as fast
        metrics.jsonl      one line per log point, append-only, authoritative
        checkpoint.pt      the newest checkpoint; checkpoint.previous.pt is the checkpoint before it
        summary.json       the last line of metrics.jsonl, and the wall time of the last session
        provenance.json    for each session: git commit and diff, versions, device; data checksum
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
from omegaconf import OmegaConf

from wdlab.errors import ConfigError, is_name
from wdlab.interpolations import plain
from wdlab.records.files import write_atomically
from wdlab.records.identity import CONFIGS, run_name
from wdlab.records.provenance import _ENVIRONMENT, code_version, package_versions, utc_now

# config groups whose files name a class or a function as ``_target_``
TARGET_GROUPS = ("model", "optimizer", "regularizer", "regularizer/over_time", "lr_schedule")

FINISHED = ("done", "diverged")
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the same values by C code take a quarter of the time
_TAIL_BYTES = 16_384  # more than the longest line of metrics.jsonl
_LOCK_SECONDS = 0.2  # how long a run waits for its lock; reading ``is_locked`` takes the lock for microseconds
_UNUSABLE = (ValueError, TypeError, LookupError, OverflowError, RecursionError)  # raised by parsing damaged files


def check_targets(config: Mapping[str, Any]) -> None:
    """Check that a node of the config with the name of a file in ``configs`` has the ``_target_`` of this file.

    A run is identified by the names of its nodes (``model.name``), without their ``_target_``. With another class under
    the name of a file, a run would be taken for the run of the file's own class, and skipped if that run is finished.

    Args:
        config: the config of a run; its nodes for ``TARGET_GROUPS`` are checked.

    Raises:
        ConfigError: if a node has the name of a file and another ``_target_``.
    """
    for group in TARGET_GROUPS:
        node: Any = config
        for key in group.split("/"):
            node = node.get(key) if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping):
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
    """Return the ``_target_`` in ``configs/<group>/<name>.yaml``; None if the file does not exist or has none."""
    path = CONFIGS / group / f"{name}.yaml"
    return OmegaConf.load(path).get("_target_") if path.is_file() else None


class RunDirectory:
    """The files of one run. Creating the object touches nothing on disk.

    Args:
        root: the folder of the run directories.
        name: the run's name, which is also the name of its directory.
    """

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
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Return the directory of the run that a config describes.

        Raises:
            ConfigError: if ``paths`` is not a group of folder names, or as :func:`check_targets`.
        """
        if not isinstance(config["paths"], Mapping):
            raise ConfigError(f"paths={config['paths']}: must be a group of keys")
        for key, path in config["paths"].items():
            if not isinstance(path, str) or not path:
                raise ConfigError(f"paths.{key}={path}: must be a folder")
        resolved = plain(config)
        check_targets(resolved)
        return cls(config["paths"]["runs"], run_name(resolved))

    def create(self) -> None:
        """Create the directory and its parents, unless they exist."""
        self.path.mkdir(parents=True, exist_ok=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write a config, with its interpolations resolved, as ``config.yaml`` and ``config.json``.

        ``config.json`` has the config under the key ``config``, next to the checksum of ``config.yaml``.
        """
        resolved = plain(config)
        text = yaml.dump(resolved, Dumper=_DUMPER, sort_keys=False)
        write_atomically(self.config, text)
        self.write(self.parsed_config.name, {"sha256 of config.yaml": _checksum(text.encode()), "config": resolved})

    def read_config(self) -> dict[str, Any]:
        """Return the content of ``config.yaml`` as nested dicts and lists of plain values.

        ``config.json`` is read instead if it contains the checksum of the present ``config.yaml``. Otherwise, after an
        edit of ``config.yaml`` or if ``config.json`` is missing, ``config.yaml`` itself is parsed, which is slow.

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
        """Return a lock on the run, which the caller has to acquire.

        Acquiring raises ``filelock.Timeout`` if another process holds the lock for longer than ``_LOCK_SECONDS``. The
        operating system releases the lock when the process that holds it ends, even if that process is killed.
        """
        return filelock.FileLock(self.lock_file, timeout=_LOCK_SECONDS, poll_interval=_LOCK_SECONDS / 10)

    @property
    def is_locked(self) -> bool:
        """True while a process holds the run's lock; False on a filesystem without locks.

        Reading this property creates no file. It acquires the lock in shared mode for microseconds; a run that starts
        at this moment is not turned away, since it waits for the lock for ``_LOCK_SECONDS``.
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
        """Remove the temporary files of a process that was killed while writing. The caller has to hold the lock."""
        for path in self.path.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    @property
    def status(self) -> str:
        """The status in ``status.json``: running, interrupted, done, diverged or failed; ``new`` if there is none."""
        return self.read("status.json").get("status", "new")

    @property
    def last_step(self) -> int:
        """The step of the last complete line of ``metrics.jsonl``; 0 if no such line can be read."""
        try:
            with self.metrics.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = file.read().split(b"\n")[:-1]
            return int(json.loads(lines[-1])["step"])
        except (OSError, *_UNUSABLE):
            return 0

    @property
    def finished(self) -> bool:
        """True if nothing is left to compute: the run is done or diverged."""
        return self.status in FINISHED

    def write_status(self, status: str, **details: Any) -> None:
        """Write ``status.json``: the status, the time, the id of this process, and the host.

        Args:
            status: running, interrupted, done, diverged or failed.
            details: further keys of the file, such as ``step`` or ``error``.
        """
        where = {"time": utc_now(), "pid": os.getpid(), "host": socket.gethostname()}
        self.write("status.json", {"status": status, **where, **details})

    def read(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file of the run; {} if it is missing, damaged, or not a JSON object."""
        try:
            content = json.loads((self.path / name).read_text())
        except (OSError, *_UNUSABLE):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run, completely or not at all."""
        write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")

    def write_provenance(self, data_checksum: str, **machine: Any) -> bool:
        """Add this session to ``provenance.json``: its code, package versions, machine and environment variables.

        Args:
            data_checksum: checksum of the data set.
            machine: everything about the machine that can change numbers, such as device and number of threads.

        Returns:
            True if this is the first session or the previous session had the same ``machine`` values. If False, the
            numbers of a resumed run are equal up to rounding only.
        """
        sessions = self.read("provenance.json").get("sessions", [])
        session = {"time": utc_now(), **machine, "code": code_version(), "versions": package_versions()}
        session |= {"environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}}
        self.write("provenance.json", {"data_checksum": data_checksum, "sessions": [*sessions, session]})
        return not sessions or all(sessions[-1].get(key, False) == value for key, value in machine.items())


def _checksum(text: bytes) -> str:
    """Return the SHA-256 of a text in hexadecimal digits, used to detect an edited ``config.yaml``."""
    return hashlib.sha256(text).hexdigest()
