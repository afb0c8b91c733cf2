"""How long runs took on each device, from their records. Called by ``figures``."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime

from wdlab.records.directory import RunDirectory

Span = tuple[datetime, datetime]


def spent(directories: Sequence[RunDirectory]) -> dict[str, dict[str, float]]:
    """Return the ``hours`` in which each device trained runs, and the ``core_hours`` of the processes that did.

    Time in which a device or a process trained several runs, such as a stack, counts once. Core hours are the time of a
    process times its number of threads. A run that was resumed counts with its last session, since only the end of that
    is recorded.

    Args:
        directories: of runs that have ended.
    """
    spans: dict[str, dict[tuple[str, int, int], list[Span]]] = defaultdict(lambda: defaultdict(list))
    for directory in directories:
        ended = directory.read("status.json")
        for session in directory.read("provenance.json").get("sessions", [])[-1:]:
            begin, end = (datetime.fromisoformat(time) for time in (session["time"], ended["time"]))
            spans[session["device"]][ended["host"], ended["pid"], session["threads"]].append((begin, end))
    return {
        device: {
            "hours": round(_covered(span for spans in of.values() for span in spans), 4),
            "core_hours": round(sum(threads * _covered(spans) for (*_, threads), spans in of.items()), 4),
        }
        for device, of in sorted(spans.items())
    }


def _covered(spans: Iterable[Span]) -> float:
    """Return the hours that spans of time cover; where they overlap, an hour counts once."""
    seconds, until = 0.0, None
    for begin, end in sorted(spans):
        begin = begin if until is None else max(begin, until)
        if end > begin:
            seconds, until = seconds + (end - begin).total_seconds(), end
    return seconds / 3600
