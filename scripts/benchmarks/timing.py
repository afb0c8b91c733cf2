"""Measure cases side by side in one process, and write them down as a table. Used by every section."""

import csv
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

from wdlab.engine import cpu
from wdlab.engine.device import device_name
from wdlab.records.provenance import code_version

HOW_OFTEN = 10  # repeats between two lines of progress
LONG = 0.1  # seconds from which on a run needs no other one before it that wakes threads and fills caches
DENORMAL = 1e-4  # the share of numbers that may be; some p-norm decays pass through a few on the way to exact zeros
PROFILED = 3  # runs that a profile is of
OPERATIONS = 6  # that a profile names


@dataclass(frozen=True)
class Options:
    """What the command line says; every section takes from it what it needs."""

    device: torch.device
    repeats: int
    milliseconds: float  # how long one measurement should last
    width: int
    compiled: bool
    quick: bool = False  # tiny sizes, to see whether everything runs

    def sized(self, full: Any, quick: Any) -> Any:
        """``full``, or ``quick`` where numbers do not matter."""
        return quick if self.quick else full

    def at_most(self, repeats: int) -> Self:
        """The same with fewer repeats, for what is slow."""
        return replace(self, repeats=min(self.repeats, repeats))

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Case:
    """Something to be timed.

    Args:
        what: its name in the table.
        run: does it once.
        target: the largest ratio to the base that will do; where speed-ups are told, the smallest speed-up.
        note: for the reader of the table.
        timed: whether ``run`` looks at the clock itself, to leave out what does not count, and returns seconds.
    """

    what: str
    run: Callable[[], Any]
    target: float | None = None
    note: str = ""
    timed: bool = False


@dataclass(frozen=True)
class Row:
    """A case as measured: microseconds, and the ratio to the base with its 10-90 % range over the repeats."""

    case: str
    median_us: float
    ratio: float
    ratio_10: float
    ratio_90: float
    target: float | None
    met: str  # yes, no, or nothing where there is no target
    note: str


@dataclass
class Table:
    """What a section returns."""

    title: str
    base: str
    copies: int  # of the base
    problem: str  # what is timed, for the header
    rows: list[Row]
    stated: list[tuple[str, str, str]] = field(default_factory=list)  # case, ratio and source of what others measured
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Quantity:
    """What is told of a case and the one it is compared with."""

    name: str
    sign: str  # of a target
    explained: str

    def of(self, seconds: float, against: float) -> float:
        """Its value."""
        return seconds / against if self.name == "ratio" else against / seconds

    def meets(self, value: float, target: float) -> bool:
        """Whether it will do."""
        return value <= target if self.name == "ratio" else value >= target


RATIO = Quantity("ratio", "<=", "ratio: time / time of what the case is compared with")
SPEED_UP = Quantity("speed-up", ">=", "speed-up: how many times as fast as what the case is compared with")


@dataclass(frozen=True)
class Comparison:
    """A case as measured, beside another one of the same part."""

    case: str
    against: str
    median_us: float
    per_second: float | None  # items of a part per second
    value: float  # of the part's quantity: the median over the repeats, and the 10-90 % range
    value_10: float
    value_90: float
    target: float | None
    met: str
    note: str


@dataclass
class Part:
    """Cases that are measured in turn: one table of a page."""

    title: str
    problem: str  # what is timed
    quantity: Quantity
    repeats: int
    rows: list[Comparison]
    items: tuple[int, str] | None = None  # how many of what are done in the time told, for "... per second"
    remarks: list[str] = field(default_factory=list)


@dataclass
class Page:
    """What a section of several parts returns."""

    title: str
    parts: list[Part]
    remarks: list[str] = field(default_factory=list)


def measure(name: str, base: Sequence[Case], cases: Sequence[Case], options: Options) -> list[Row]:
    """Time all cases in turn, ``options.repeats`` times over.

    Whatever disturbs the machine for longer than one repeat disturbs all cases alike, and cancels in the ratios, which
    are taken within a repeat.

    Args:
        name: of the section.
        base: what the ratios are to, several times over with memory of its own, since where that happens to lie makes a
            difference. They are spread over the repeat; the median of them counts, and they make one row.
        cases: what else is timed.
        options: of the command line.
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
    """Seconds per run of each case in each repeat; a repeat times all of them in turn."""
    _tell(f"{name}: {len(cases)} cases, warming up")
    timers = [_timer(case, options) for case in cases]
    seconds: list[list[float]] = []
    gc.collect()
    gc.disable()
    try:
        for repeat in range(options.repeats):
            seconds.append([timer() for timer in timers])
            if (repeat + 1) % HOW_OFTEN == 0 or repeat + 1 == options.repeats:
                _tell(f"{name}: repeat {repeat + 1} of {options.repeats}")
    finally:
        gc.enable()
    return [list(times) for times in zip(*seconds, strict=True)]


def _timer(case: Case, options: Options) -> Callable[[], float]:
    """What measures a case once, for ``options.milliseconds``; the case is warm and compiled behind this."""
    case.run()
    if case.timed:
        return case.run
    if _seconds(case.run, 1, options) > LONG:
        return partial(_seconds, case.run, 1, options)
    case.run()
    fastest = min(_time(case.run, 1, options) for _ in range(5))
    return partial(_time, case.run, max(1, round(options.milliseconds / 1000 / fastest)), options)


def _time(run: Callable[[], object], count: int, options: Options) -> float:
    """Seconds per run, after one more that wakes threads and fills caches."""
    run()
    return _seconds(run, count, options)


def _seconds(run: Callable[[], object], count: int, options: Options) -> float:
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
    """Measure cases against one of them; where one misses its target, a remark says what its time goes to."""
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
    its: Sequence[float],
    quantity: Quantity,
    items: tuple[int, str] | None = None,
) -> Comparison:
    """A row: ``case`` beside ``against``, with their seconds in the same repeats."""
    values = [quantity.of(mine, other) for mine, other in zip(seconds, its, strict=True)]
    value, tenths = statistics.median(values), statistics.quantiles(values, n=10, method="inclusive")
    met = "" if case.target is None else "yes" if quantity.meets(value, case.target) else "no"
    median = statistics.median(seconds)
    per_second = items[0] / median if items else None
    spread = (value, tenths[0], tenths[-1])
    return Comparison(case.what, against.what, median * 1e6, per_second, *spread, case.target, met, case.note)


def operations(case: Case, options: Options) -> str:
    """The operations that take most of a case's time on the CPU, with their shares of what the profiler saw."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(PROFILED):
            case.run()
        options.synchronize()
    times = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    total = sum(times.values()) or 1
    longest = sorted(times, key=times.get, reverse=True)[:OPERATIONS]
    return ", ".join(f"{key} {times[key] / total:.0%}" for key in longest)


def check_ordinary(what: str, tensors: Iterable[Tensor]) -> None:
    """Raise a RuntimeError if numbers are not finite, or if more than a few are denormal: the times mean nothing."""
    values = torch.cat([t.detach().flatten().float().abs() for t in tensors])
    if not values.isfinite().all():
        raise RuntimeError(f"{what}: a weight or a state is not finite")
    denormal = ((values > 0) & (values < torch.finfo(values.dtype).tiny)).double().mean().item()
    if denormal > DENORMAL:
        raise RuntimeError(f"{what}: {denormal:.2%} of the weights and states are denormal, which takes time")


def _row(case: Case, seconds: Sequence[float], base: Sequence[float]) -> Row:
    ratios = [mine / its for mine, its in zip(seconds, base, strict=True)]
    ratio = statistics.median(ratios)
    tenths = statistics.quantiles(ratios, n=10, method="inclusive")
    met = "" if case.target is None else "yes" if ratio <= case.target else "no"
    median = statistics.median(seconds) * 1e6
    return Row(case.what, median, ratio, tenths[0], tenths[-1], case.target, met, case.note)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def write(table: Table | Page, name: str, options: Options, folder: Path) -> Path:
    """Write ``<name>.csv``, the numbers, and ``<name>.md``, the page to read; return the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    is_page = isinstance(table, Page)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        for row in _numbers_of_page(table) if is_page else _numbers(table):
            rows.writerow([_rounded(value) for value in row])
    page = folder / f"{name}.md"
    lines = [*_header(table.title, name)]
    lines += _parts(table, options) if is_page else _one_table(table, options)
    page.write_text("\n".join([*lines, *_remarks(table.remarks)]) + "\n")
    return page


def _rounded(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def _header(title: str, name: str) -> list[str]:
    lines = [f"# {title}", ""]
    return [*lines, f"Made by `make bench` (`scripts/benchmark.py {name}`); the numbers stand in `{name}.csv`.", ""]


def _machine(options: Options) -> list[str]:
    code = code_version()
    commit = code.get("commit", "unknown")[:12] + (" with uncommitted changes" if code.get("uncommitted") else "")
    return [
        f"- device: {device_name(options.device)}, {cpu.available_threads()} threads",
        f"- torch {torch.__version__}, {time.strftime('%Y-%m-%d', time.gmtime())}, git commit {commit}",
    ]


def _remarks(remarks: Sequence[str]) -> list[str]:
    return ["", *(f"- {remark}" for remark in remarks)] if remarks else []


# -- one table


def _numbers(table: Table) -> list[list[object]]:
    columns = list(Row.__dataclass_fields__)
    return [columns, *([getattr(row, column) for column in columns] for row in table.rows)]


def _one_table(table: Table, options: Options) -> list[str]:
    return [
        f"- what is timed: {table.problem}",
        *_machine(options),
        f"- {options.repeats} repeats; in each, all cases in turn, each for about {options.milliseconds:g} ms",
        f"- ratio: time / time of `{table.base}` in the same repeat, the median of {table.copies} copies with",
        "  memory of their own; the median over the repeats, and the range that holds the middle 80 % of them. In the",
        "  first row that is the range of the copies, noise alone",
        "",
        *_lines(table),
    ]


def _lines(table: Table) -> list[str]:
    lines = [
        "| case | median, µs | ratio | 10-90 % | target | met | note |",
        "| --- | ---: | ---: | --- | --- | --- | --- |",
    ]
    for row in table.rows:
        target = "" if row.target is None else f"<= {row.target:g}"
        spread = f"{row.ratio_10:.2f}-{row.ratio_90:.2f}"
        numbers = f"{row.median_us:.0f} | {row.ratio:.2f} | {spread} | {target} | {row.met}"
        lines.append(f"| {row.case} | {numbers} | {row.note} |")
    lines += [f"| {case} | | {ratio} | | | | {source} |" for case, ratio, source in table.stated]
    return lines


# -- a page of several parts


def _numbers_of_page(page: Page) -> list[list[object]]:
    columns = list(Comparison.__dataclass_fields__)
    header = ["part", *columns[:4], "quantity", *columns[4:]]
    rows = []
    for each in page.parts:
        for row in each.rows:
            values = [getattr(row, column) for column in columns]
            rows.append([each.title, *values[:4], each.quantity.name, *values[4:]])
    return [header, *rows]


def _parts(page: Page, options: Options) -> list[str]:
    lines = [
        *_machine(options),
        "- in each repeat all cases of a table are timed in turn; ratios and speed-ups are taken within a repeat. Told",
        "  are the median over the repeats and the range that holds the middle 80 % of them",
    ]
    for each in page.parts:
        lines += ["", f"## {each.title}", "", f"- what is timed: {each.problem}"]
        lines += [f"- {each.repeats} repeats; {each.quantity.explained}", "", *_lines_of_part(each)]
        lines += _remarks(each.remarks)
    return lines


def _lines_of_part(each: Part) -> list[str]:
    per_second = f" {each.items[1]}/s |" if each.items else ""
    lines = [
        f"| case | compared with | median, ms |{per_second} {each.quantity.name} | 10-90 % | target | met | note |",
        f"| --- | --- | ---: |{' ---: |' if per_second else ''} ---: | --- | --- | --- | --- |",
    ]
    for row in each.rows:
        target = "" if row.target is None else f"{each.quantity.sign} {row.target:g}"
        items = f" {row.per_second:.4g} |" if row.per_second else ""
        value, low, high = (_short(v) for v in (row.value, row.value_10, row.value_90))
        told = f"{row.median_us / 1000:.4g} |{items} {value} | {low}-{high} | {target} | {row.met} | {row.note}"
        lines.append(f"| {row.case} | {'' if row.against == row.case else row.against} | {told} |")
    return lines


def _short(value: float) -> str:
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
