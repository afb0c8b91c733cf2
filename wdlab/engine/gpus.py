"""Choice of a GPU for a process: a GPU that the fewest other processes use. Called by ``device``; needs no torch."""

import getpass
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import filelock

_held: list[filelock.BaseFileLock] = []  # a lock is released when its object is deleted, so all are kept here


def claim_gpu(names: Sequence[str], folder: Path | None = None) -> int:
    """Claim the GPU that the fewest processes have claimed; among equals, the GPU that comes first in ``names``.

    A claim is a file lock, which the system releases when the process ends, even if it is killed. The first process
    that claims a GPU locks the file ``{name}.0``, the second ``{name}.1``, and so on.

    Args:
        names: one name for each GPU that is visible here. A GPU has the same name in all processes of the machine.
        folder: the folder of the lock files; None for a folder of this user in the system's temporary folder.

    Returns:
        The index of the claimed GPU in ``names``.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"wdlab-{getpass.getuser()}-gpus"
    folder.mkdir(parents=True, exist_ok=True)
    for turn in itertools.count():
        for index, name in enumerate(names):
            lock = filelock.FileLock(folder / f"{name}.{turn}", timeout=0)
            try:
                lock.acquire()
            except filelock.Timeout:
                continue
            _held.append(lock)
            return index
    raise AssertionError("unreachable")
