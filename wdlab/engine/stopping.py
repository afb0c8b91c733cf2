"""Requests to stop a run: by a signal, by its sweep, or by the death of the process that started it.

Used by ``train``, ``session`` and ``sweeps``.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Self

SWEEP_VARIABLE = "WDLAB_SWEEP"  # environment variable of a sweep's jobs, which holds the sweep's `StopFiles.prefix`
SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL_SECONDS = 0.5  # time between two checks of a sweep's stop files
_PARENT = os.getppid()


class StopFiles:
    """Two files in the runs folder whose existence stops the jobs of one sweep, on all machines that share the folder.

    ``.NAME.failed`` exists after a run has failed under ``fail_fast=true``: no further job starts.
    ``.NAME.interrupted`` exists after the sweep was interrupted: no further job starts, and running jobs end after
    their present update. ``NAME`` contains a random number, so no other sweep reads the files. They are empty, so they
    can be written on a full disk.

    Args:
        prefix: the path of the runs folder joined with ``NAME``.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = Path(prefix)
        self._failed = self.prefix.with_name(f".{self.prefix.name}.failed")
        self._interrupted = self.prefix.with_name(f".{self.prefix.name}.interrupted")

    @classmethod
    def new(cls, folder: str | Path) -> Self:
        """Return the stop files, with a new random name, of a sweep whose runs are in ``folder``. Writes no file."""
        return cls(Path(folder).absolute() / f"sweep-{uuid.uuid4().hex}")

    @classmethod
    def of_this_job(cls) -> Self | None:
        """Return the stop files of the sweep whose job this process runs; None outside of a sweep."""
        return cls(os.environ[SWEEP_VARIABLE]) if SWEEP_VARIABLE in os.environ else None

    @property
    def interrupted(self) -> bool:
        """True if running jobs should end after their present update and no further job should start."""
        return self._interrupted.exists()

    @property
    def is_set(self) -> bool:
        """True if no further job should start."""
        return self._failed.exists() or self.interrupted

    def set_failed(self) -> None:
        """Prevent further jobs from starting after a run has failed. Does nothing if the folder cannot be written."""
        self._create(self._failed)

    def set_interrupted(self) -> bool:
        """Stop all jobs; return True. Return False if the folder cannot be written, in which case no job is stopped."""
        return self._create(self._interrupted)

    def clear(self) -> None:
        """Delete the files, if they exist. The sweep calls this at its end."""
        for path in (self._failed, self._interrupted):
            with contextlib.suppress(OSError):
                path.unlink()

    def _create(self, path: Path) -> bool:
        """Create an empty file; return True, or False if it cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError:
            return False
        return True


def is_worker() -> bool:
    """Return True if this process is a worker: a child process, such as joblib's, that ends with its parent."""
    return multiprocessing.current_process().name != "MainProcess"


def is_orphan() -> bool:
    """Return True if this process is a worker (see :func:`is_worker`) whose parent has died."""
    return is_worker() and os.getppid() != _PARENT


@contextlib.contextmanager
def watch_stop_requests(stop_files: StopFiles | None = None) -> Iterator[Callable[[], bool]]:
    """Context manager that yields a function which returns True if the run should stop.

    A stop is requested by SIGINT, SIGTERM, the sweep's file ``.NAME.interrupted``, or (in a worker) the death of the
    parent. Inside the context the signals do not end the process in the middle of an update. A second SIGINT raises
    KeyboardInterrupt, except in workers, which receive every Ctrl-C twice: from the terminal and from their parent.
    Repeated SIGTERMs are ignored because clusters send several.

    Args:
        stop_files: the stop files of the sweep that the run belongs to; None for a run outside of a sweep.
    """
    requested = threading.Event()
    last_poll = -POLL_SECONDS

    def on_signal(number: int, _: FrameType | None) -> None:
        if requested.is_set() and number == signal.SIGINT and not is_worker():
            raise KeyboardInterrupt
        requested.set()

    def stop() -> bool:
        nonlocal last_poll
        if time.monotonic() - last_poll >= POLL_SECONDS:
            last_poll = time.monotonic()
            if (stop_files is not None and stop_files.interrupted) or is_orphan():
                requested.set()
        return requested.is_set()

    with _handling_signals(on_signal):
        yield stop


@contextlib.contextmanager
def forward_signals(stop_files: StopFiles) -> Iterator[None]:
    """Context manager in which the first SIGINT or SIGTERM stops the jobs of a sweep by its stop files.

    A second signal raises KeyboardInterrupt, and so does the first if the files cannot be written.
    """

    def on_signal(*_: object) -> None:
        if stop_files.interrupted or not stop_files.set_interrupted():
            raise KeyboardInterrupt

    with _handling_signals(on_signal):
        yield


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Context manager in which SIGTERM raises KeyboardInterrupt, as SIGINT (Ctrl-C) does."""

    def on_signal(*_: object) -> None:
        raise KeyboardInterrupt

    with _handling_signals(on_signal):
        yield


@contextlib.contextmanager
def _handling_signals(on_signal: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Context manager in which ``on_signal(number, frame)`` handles SIGINT and SIGTERM.

    Outside of the main thread it does nothing, since Python handles signals in the main thread only. At its end the
    previous handlers are restored, except in a worker, which ignores both signals from then on, since its parent ends
    it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if is_worker() else handler)
