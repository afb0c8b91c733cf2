"""Timing of cases in turn, in one process, and the comparison of their times. Used by every section."""

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

REPORT_EVERY = 10  # repeats between two lines of progress
LONG = 0.1  # seconds; a longer run needs no warm-up run right before it
DENORMAL = 1e-4  # largest share of denormal numbers; p-norm decay makes a few before weights become exactly zero
PROFILED = 3  # runs in a profile
OPERATIONS = 6  # number of operations that a remark names


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    device: torch.device
    repeats: int  # measurements of every case
    milliseconds: float  # duration of one measurement
    width: int  # width of the MLP
    compiled: bool  # include the cases that need a compiler
    quick: bool = False  # tiny sizes, to test that everything runs
    against: Path | None = None  # another checkout to compare steps with

    def sized(self, full: Any, quick: Any) -> Any:
        """Return ``quick`` if the option ``quick`` is set, else ``full``."""
        return quick if self.quick else full

    def at_most(self, repeats: int) -> Self:
        """Return the same options with at most ``repeats`` repeats, for slow cases."""
        return replace(self, repeats=min(self.repeats, repeats))

    def synchronize(self) -> None:
        """Wait until a GPU has finished its work. Does nothing on a CPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Case:
    """A piece of work to be timed.

    Args:
        what: name of the case in the table.
        run: does the work once.
        target: the largest ratio to the base, or the smallest speed-up, that meets the target; None for no target.
        note: a note in the table.
        timed: True if ``run`` itself measures the time, without preparations, and returns seconds.
    """

    what: str
    run: Callable[[], Any]
    target: float | None = None
    note: str = ""
    timed: bool = False


@dataclass(frozen=True)
class Row:
    """A measured case: its median time, and the median and 10-90 % range over the repeats of its ratio to the base."""

    case: str
    median_us: float
    ratio: float
    ratio_10: float
    ratio_90: float
    target: float | None
    met: str  # yes, no, or empty without a target
    note: str


@dataclass
class Table:
    """The result of a section with a single table."""

    title: str
    base: str
    copies: int  # number of copies of the base
    problem: str  # description of the work, for the header
    rows: list[Row]
    stated: list[tuple[str, str, str]] = field(default_factory=list)  # case, ratio and source of other measurements
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Quantity:
    """A number that compares a case with another one: a ratio or a speed-up."""

    name: str
    sign: str  # in front of a target
    explained: str  # definition, for the page

    def of(self, seconds: float, against: float) -> float:
        """Return the value from the seconds of a case and of the case it is compared ``against``."""
        return seconds / against if self.name == "ratio" else against / seconds

    def meets(self, value: float, target: float) -> bool:
        """Return True if a value meets a target."""
        return value <= target if self.name == "ratio" else value >= target


RATIO = Quantity("ratio", "<=", "ratio: time / time of the case it is compared with")
SPEED_UP = Quantity("speed-up", ">=", "speed-up: time of the case it is compared with / time")


@dataclass(frozen=True)
class Comparison:
    """A measured case, compared with another one of the same part."""

    case: str
    against: str  # name of the other case
    median_us: float
    per_second: float | None  # items of the part per second; None without items
    value: float  # value of the part's quantity: its median over the repeats, and below its 10-90 % range
    value_10: float
    value_90: float
    target: float | None
    met: str
    note: str


@dataclass
class Part:
    """One table of a page: cases that are measured in turn."""

    title: str
    problem: str  # description of the work
    quantity: Quantity
    repeats: int
    rows: list[Comparison]
    items: tuple[int, str] | None = None  # number and name of the items that one run processes, such as images
    remarks: list[str] = field(default_factory=list)


@dataclass
class Page:
    """The result of a section of several parts."""

    title: str
    parts: list[Part]
    remarks: list[str] = field(default_factory=list)


def measure(name: str, base: Sequence[Case], cases: Sequence[Case], options: Options) -> list[Row]:
    """Time all cases in turn, in each of ``options.repeats`` repeats; return a row for the base and for each case.

    A disturbance of the machine that lasts longer than a repeat slows all cases alike. It cancels in the ratios, since
    they are taken within a repeat.

    Args:
        name: name of the section.
        base: copies of the case in the denominator of the ratios, with separate memory, since the place in memory
            changes the time. The copies are spread over a repeat, and the denominator is the median of their times.
        cases: the other cases.
        options: the options of the command line.
    """
    share = math.ceil(len(cases) / len(base))
    order = [c for i, first in enumerate(base) for c in (first, *cases[i * share : (i + 1) * share])]
    of_case = dict(zip(map(id, order), in_turn(name, order, options), strict=True))
    of_base = [statistics.median(times) for times in zip(*(of_case[id(case)] for case in base), strict=True)]
    all_base = [time for case in base for time in of_case[id(case)]]
    return [
        _row(base[0], all_base, of_base * len(base)),
        *(_row(case, of_case[id(case)], of_base) for case in cases),
    ]


def in_turn(name: str, cases: Sequence[Case], options: Options) -> list[list[float]]:
    """Return for each case its seconds per run in each repeat. A repeat times all cases in turn."""
    _report(f"{name}: {len(cases)} cases, warming up")
    timers = [_timer(case, options) for case in cases]
    seconds: list[list[float]] = []
    gc.collect()
    gc.disable()
    try:
        for repeat in range(options.repeats):
            seconds.append([timer() for timer in timers])
            if (repeat + 1) % REPORT_EVERY == 0 or repeat + 1 == options.repeats:
                _report(f"{name}: repeat {repeat + 1} of {options.repeats}")
    finally:
        gc.enable()
    return [list(times) for times in zip(*seconds, strict=True)]


def _timer(case: Case, options: Options) -> Callable[[], float]:
    """Return a function that times a case for ``options.milliseconds``, and run the case first to compile it."""
    case.run()
    if case.timed:
        return case.run
    if _seconds(case.run, 1, options) > LONG:
        return partial(_seconds, case.run, 1, options)
    case.run()
    fastest = min(_time(case.run, 1, options) for _ in range(5))
    return partial(_time, case.run, max(1, round(options.milliseconds / 1000 / fastest)), options)


def _time(run: Callable[[], object], count: int, options: Options) -> float:
    """Return seconds per run, after a first run that wakes threads and fills caches."""
    run()
    return _seconds(run, count, options)


def _seconds(run: Callable[[], object], count: int, options: Options) -> float:
    """Return seconds per run, over ``count`` runs."""
    options.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        run()
    options.synchronize()
    return (time.perf_counter() - start) / count


def part(
    title: str,
    problem: str,
    base: Case,
    cases: Sequence[Case],
    options: Options,
    quantity: Quantity,
    items: tuple[int, str] | None = None,
) -> Part:
    """Time ``base`` and ``cases`` in turn; return their comparison with ``base``, with remarks on missed targets."""
    order = [base, *cases]
    seconds = in_turn(title, order, options)
    rows = [
        compared(case, times, base, seconds[0], quantity, items) for case, times in zip(order, seconds, strict=True)
    ]
    remarks = []
    for case, row in zip(order, rows, strict=True):
        if row.met == "no" and not case.timed:
            mine, its = (operations(c, options) for c in (case, base))
            remarks.append(f"`{case.what}` misses its target. Its time goes to {mine}; that of `{base.what}` to {its}.")
    return Part(title, problem, quantity, options.repeats, rows, items, remarks)


def compared(
    case: Case,
    seconds: Sequence[float],
    against: Case,
    other_seconds: Sequence[float],
    quantity: Quantity,
    items: tuple[int, str] | None = None,
) -> Comparison:
    """Compare ``case`` with ``against``, given ``seconds`` and ``other_seconds`` of the two in the same repeats."""
    values = [quantity.of(mine, other) for mine, other in zip(seconds, other_seconds, strict=True)]
    value, tenths = statistics.median(values), statistics.quantiles(values, n=10, method="inclusive")
    met = "" if case.target is None else "yes" if quantity.meets(value, case.target) else "no"
    median = statistics.median(seconds)
    per_second = items[0] / median if items else None
    spread = (value, tenths[0], tenths[-1])
    return Comparison(case.what, against.what, median * 1e6, per_second, *spread, case.target, met, case.note)


def operations(case: Case, options: Options) -> str:
    """Return in words the operations that take most of a case's CPU time, with their shares of that time."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(PROFILED):
            case.run()
        options.synchronize()
    times = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    total = sum(times.values()) or 1
    longest = sorted(times, key=times.get, reverse=True)[:OPERATIONS]
    return ", ".join(f"{key} {times[key] / total:.0%}" for key in longest)


def check_ordinary(what: str, tensors: Iterable[Tensor]) -> None:
    """Raise a RuntimeError if a number is not finite, or if more than the share ``DENORMAL`` is denormal."""
    values = torch.cat([t.detach().flatten().float().abs().cpu() for t in tensors])  # Adam's steps are on the CPU
    if not values.isfinite().all():
        raise RuntimeError(f"{what}: a weight or a state is not finite")
    denormal = ((values > 0) & (values < torch.finfo(values.dtype).tiny)).double().mean().item()
    if denormal > DENORMAL:
        raise RuntimeError(f"{what}: {denormal:.2%} of the weights and states are denormal, which takes time")


def _row(case: Case, seconds: Sequence[float], base: Sequence[float]) -> Row:
    """Return the row of a case, given the seconds of the case and of the base in the same repeats."""
    ratios = [mine / its for mine, its in zip(seconds, base, strict=True)]
    ratio = statistics.median(ratios)
    tenths = statistics.quantiles(ratios, n=10, method="inclusive")
    met = "" if case.target is None else "yes" if ratio <= case.target else "no"
    median = statistics.median(seconds) * 1e6
    return Row(case.what, median, ratio, tenths[0], tenths[-1], case.target, met, case.note)


def _report(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)
