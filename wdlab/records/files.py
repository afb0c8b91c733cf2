"""Files that are written completely or not at all, with errors that name the file."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path, undo=temporary.unlink):
        temporary.write_text(text)
        temporary.replace(path)


@contextlib.contextmanager
def writing(path: Path, undo: Callable[[], object]) -> Iterator[None]:
    """Guard the writing of ``path``: on an OSError (such as a full disk) call ``undo``, and name the file in the error.

    Raises:
        OSError: with the file's name, which Python leaves out once a file is open.
    """
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            undo()
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
