"""Writing of files, completely or not at all, with errors that name the file."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one step: other processes read the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with undone_on_error(path, undo=temporary.unlink):
        temporary.write_text(text)
        temporary.replace(path)


@contextlib.contextmanager
def undone_on_error(path: Path, undo: Callable[[], object]) -> Iterator[None]:
    """Context manager around the writing of a file, which undoes an incomplete write and names the file in the error.

    Args:
        path: the file.
        undo: called after an OSError (such as a full disk) to delete or shorten the file; its own OSError is ignored.

    Raises:
        OSError: the error that occurred, with the file's name, which Python leaves out if the file was already open.
    """
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            undo()
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
