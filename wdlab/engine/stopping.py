"""Requests to stop a run: by a signal, by its sweep, by the death of the process that started it.

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

SWEEP_VARIABLE = "WDLAB_SWEEP"  # environment variable of a sweep's jobs: `StopFiles.prefix` of their sweep
SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL_SECONDS = 0.5  # between two checks of a sweep's stop files
_PARENT = os.getppid()


class StopFiles:
    """Two files in the runs folder whose existence stops the jobs of one sweep, on every machine that sees the folder.

    ``.NAME.failed`` exists after a run has failed under ``fail_fast=true``: no further job starts.
    ``.NAME.interrupted`` exists after the sweep was interrupted: jobs that run also end, at a step. The names contain
    a random number, so no other sweep reads them. The files are empty, so they can be written on a full disk.

    Args:
        prefix: the folder of the runs joined with the sweep's name.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = Path(prefix)
        self._failed = self.prefix.with_name(f".{self.prefix.name}.failed")
        self._interrupted = self.prefix.with_name(f".{self.prefix.name}.interrupted")

    @classmethod
    def new(cls, folder: str | Path) -> Self:
        """Return the stop files of a new sweep whose runs are in ``folder``. Nothing is written yet."""
        return cls(Path(folder).absolute() / f"sweep-{uuid.uuid4().hex}")

    @classmethod
    def of_this_job(cls) -> Self | None:
        """Return the stop files of the sweep that this process runs a job of, or None outside of sweeps."""
        return cls(os.environ[SWEEP_VARIABLE]) if SWEEP_VARIABLE in os.environ else None

    @property
    def interrupted(self) -> bool:
        """True if running jobs should end at a step and no further job should start."""
        return self._interrupted.exists()

    @property
    def is_set(self) -> bool:
        """True if no further job should start."""
        return self._failed.exists() or self.interrupted

    def set_failed(self) -> None:
        """Let no further job start, since a run has failed. Does nothing if the folder cannot be written."""
        self._create(self._failed)

    def set_interrupted(self) -> bool:
        """Stop all jobs. Return False if the folder cannot be written, so that the jobs will not notice."""
        return self._create(self._interrupted)

    def clear(self) -> None:
        """Delete the files at the end of the sweep."""
        for path in (self._failed, self._interrupted):
            with contextlib.suppress(OSError):
                path.unlink()

    def _create(self, path: Path) -> bool:
        """Create an empty file and return True if that was possible."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError:
            return False
        return True


def is_worker() -> bool:
    """Return True in a worker: a process that another one started, such as joblib's, and that ends with it."""
    return multiprocessing.current_process().name != "MainProcess"


def is_orphan() -> bool:
    """Return True if this process is a worker whose parent has died."""
    return is_worker() and os.getppid() != _PARENT


@contextlib.contextmanager
def exit_requests(stop_files: StopFiles | None = None) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True if the run should stop; the loop calls it after every step.

    A stop is requested by SIGINT, SIGTERM, the sweep's stop files, or (in a worker) the death of the parent. The
    signals no longer end the process in the middle of a step. A second SIGINT raises KeyboardInterrupt, except in
    workers, which receive every Ctrl-C twice: from the terminal and from their parent. Repeated SIGTERMs are ignored
    because clusters send several.

    Args:
        stop_files: those of the sweep that the run belongs to, if any.
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
    """Context manager that forwards SIGINT and SIGTERM to a sweep's jobs by its stop files, so that they end at a step.

    A second signal, or the first if the files cannot be written, raises KeyboardInterrupt.
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
    """Context manager that handles SIGINT and SIGTERM by ``on_signal``; does nothing outside of the main thread.

    Python can handle signals in the main thread only. After its job a worker ignores both signals, since its parent
    decides when it ends.
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
