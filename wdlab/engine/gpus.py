"""Choice of a GPU for a process: the one that the fewest other processes use. Called by ``device``; needs no torch."""

import getpass
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import filelock

_held: list[filelock.BaseFileLock] = []  # keeps the locks from being released while the process lives


def claim_gpu(names: Sequence[str], folder: Path | None = None) -> int:
    """Claim a GPU for this process: the first of those that the fewest processes have claimed.

    A claim is a file lock, so it ends with the process, however that ends. The first process of a GPU locks
    ``{name}.0``, the second ``{name}.1``, and so on.

    Args:
        names: one for each GPU that this process sees; a GPU has the same name in all processes of the machine.
        folder: where the lock files are; None for a folder of this user among the temporary files.

    Returns:
        The index of the claimed GPU in ``names``.
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
