"""Which of several GPUs a process computes on: the one that the fewest others have. Called by ``device``; no torch."""

import getpass
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import filelock

_held: list[filelock.BaseFileLock] = []


def claim_gpu(names: Sequence[str], folder: Path | None = None) -> int:
    """Take a GPU until this process ends, however it ends: the first of those that the fewest processes have.

    Args:
        names: of the GPUs, the same in every process of this machine, whichever of them it sees.
        folder: for the locks; one of this user's among the temporary files if None.

    Returns:
        Its place in ``names``.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"wdlab-{getpass.getuser()}-gpus"
    folder.mkdir(parents=True, exist_ok=True)
    for turn in itertools.count():
        for place, name in enumerate(names):
            lock = filelock.FileLock(folder / f"{name}.{turn}", timeout=0)
            try:
                lock.acquire()
            except filelock.Timeout:
                continue
            _held.append(lock)
            return place
    raise AssertionError("unreachable")
