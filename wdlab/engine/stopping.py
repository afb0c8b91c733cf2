"""How a run is asked to stop: by a signal, by its sweep, by the death of the process that started it.

Called by ``train`` and ``sweep``.
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

SWEEP = "WDLAB_SWEEP"  # the environment variable that says where a job's sweep puts its notice
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_BETWEEN_LOOKS = 0.5
_PARENT = os.getppid()


class StopFiles:
    """Files in the runs folder that tell the jobs of one sweep to stop, in every process on every machine that has it.

    Their names are the sweep's own, so that no other sweep ever heeds them. They are empty: a full disk has room.

    Args:
        place: the folder of the runs, and in it the name of the sweep.
    """

    def __init__(self, place: str | Path) -> None:
        self.place = Path(place)
        self._failed = self.place.with_name(f".{self.place.name}.failed")
        self._interrupted = self.place.with_name(f".{self.place.name}.interrupted")

    @classmethod
    def new(cls, folder: str | Path) -> Self:
        """That of a sweep which begins."""
        return cls(Path(folder).absolute() / f"sweep-{uuid.uuid4().hex}")

    @classmethod
    def of_this_job(cls) -> Self | None:
        """That of the sweep which this process runs a job of, if any."""
        return cls(os.environ[SWEEP]) if SWEEP in os.environ else None

    @property
    def interrupted(self) -> bool:
        """Whether the jobs that run should stop at a step, and no other should start."""
        return self._interrupted.exists()

    @property
    def is_set(self) -> bool:
        """Whether no further job should start."""
        return self._failed.exists() or self.interrupted

    def set_failed(self) -> None:
        """A run has failed: no further job starts. As far as the folder can be written."""
        self._tell(self._failed)

    def set_interrupted(self) -> bool:
        """Everything stops. Returns whether the folder could be written, so that the jobs will see it."""
        return self._tell(self._interrupted)

    def clear(self) -> None:
        """Take the files away: the sweep is over."""
        for path in (self._failed, self._interrupted):
            with contextlib.suppress(OSError):
                path.unlink()

    def _tell(self, path: Path) -> bool:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError:
            return False
        return True


def is_worker() -> bool:
    """Whether this process only works for another one, which started it and sees to its end."""
    return multiprocessing.current_process().name != "MainProcess"


def is_orphan() -> bool:
    """Whether this is a worker whose parent is dead."""
    return is_worker() and os.getppid() != _PARENT


@contextlib.contextmanager
def exit_requests(notice: StopFiles | None = None) -> Iterator[Callable[[], bool]]:
    """A function that says whether to stop at this step, asked in every one.

    SIGINT and SIGTERM say so instead of ending the process in the middle of a step. A second SIGINT ends it, but not a
    worker, which hears the same from its parent and from the terminal; of SIGTERM clusters send several. So do a
    sweep's notice and the death of a worker's parent.
    """
    requested = threading.Event()
    looked = -SECONDS_BETWEEN_LOOKS

    def on_signal(number: int, _: FrameType | None) -> None:
        if requested.is_set() and number == signal.SIGINT and not is_worker():
            raise KeyboardInterrupt
        requested.set()

    def stop() -> bool:
        nonlocal looked
        if time.monotonic() - looked >= SECONDS_BETWEEN_LOOKS:
            looked = time.monotonic()
            if (notice is not None and notice.interrupted) or is_orphan():
                requested.set()
        return requested.is_set()

    with handled(on_signal):
        yield stop


@contextlib.contextmanager
def passed_on(notice: StopFiles) -> Iterator[None]:
    """SIGINT and SIGTERM reach the jobs of a sweep through its notice; twice, or if nobody can read it, they end it."""

    def on_signal(*_: object) -> None:
        if notice.interrupted or not notice.set_interrupted():
            raise KeyboardInterrupt

    with handled(on_signal):
        yield


@contextlib.contextmanager
def as_interrupt() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does."""

    def on_signal(*_: object) -> None:
        raise KeyboardInterrupt

    with handled(on_signal):
        yield


@contextlib.contextmanager
def handled(on_signal: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGINT and SIGTERM go to ``on_signal``. Only the main thread can handle signals; elsewhere nothing changes.

    A worker that is done with its job ignores them from then on: its parent decides.
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
