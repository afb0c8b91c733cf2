"""Measure cases side by side in one process, and write them down as a table. Used by every section."""

import csv
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from wdlab import runs
from wdlab.device import device_name

HOW_OFTEN = 10  # repeats between two lines of progress


@dataclass(frozen=True)
class Options:
    """What the command line says; every section takes from it what it needs."""

    device: torch.device
    repeats: int
    milliseconds: float  # how long one measurement should last
    width: int
    compiled: bool

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
        target: the largest ratio to the base that will do.
        note: for the reader of the table.
    """

    what: str
    run: Callable[[], object]
    target: float | None = None
    note: str = ""


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
    _tell(f"{name}: {len(cases)} cases, warming up")
    counts = [_count(case.run, options) for case in order]
    seconds: list[list[float]] = []
    gc.collect()
    gc.disable()
    try:
        for repeat in range(options.repeats):
            seconds.append([_time(case.run, count, options) for case, count in zip(order, counts, strict=True)])
            if (repeat + 1) % HOW_OFTEN == 0 or repeat + 1 == options.repeats:
                _tell(f"{name}: repeat {repeat + 1} of {options.repeats}")
    finally:
        gc.enable()
    of_case = dict(zip(map(id, order), zip(*seconds, strict=True), strict=True))
    of_base = [statistics.median(times) for times in zip(*(of_case[id(case)] for case in base), strict=True)]
    all_base = [time for case in base for time in of_case[id(case)]]
    return [
        _row(base[0], all_base, of_base * len(base)),
        *(_row(case, of_case[id(case)], of_base) for case in cases),
    ]


def _count(run: Callable[[], object], options: Options) -> int:
    """How many runs last ``options.milliseconds``, after a warm-up that compiles what is to be compiled."""
    for _ in range(3):
        run()
    fastest = min(_time(run, 1, options) for _ in range(5))
    return max(1, round(options.milliseconds / 1000 / fastest))


def _time(run: Callable[[], object], count: int, options: Options) -> float:
    """Seconds per run, after one more that wakes threads and fills caches."""
    run()
    options.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        run()
    options.synchronize()
    return (time.perf_counter() - start) / count


def _row(case: Case, seconds: Sequence[float], base: Sequence[float]) -> Row:
    ratios = [mine / its for mine, its in zip(seconds, base, strict=True)]
    ratio = statistics.median(ratios)
    tenths = statistics.quantiles(ratios, n=10, method="inclusive")
    met = "" if case.target is None else "yes" if ratio <= case.target else "no"
    median = statistics.median(seconds) * 1e6
    return Row(case.what, median, ratio, tenths[0], tenths[-1], case.target, met, case.note)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def write(table: Table, name: str, options: Options, folder: Path) -> Path:
    """Write ``<name>.csv``, the numbers, and ``<name>.md``, the page to read; return the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(Row.__dataclass_fields__)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(columns)
        rows.writerows([_rounded(getattr(row, column)) for column in columns] for row in table.rows)
    page = folder / f"{name}.md"
    page.write_text("\n".join([*_header(table, name, options), *_lines(table), *_remarks(table)]) + "\n")
    return page


def _rounded(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def _header(table: Table, name: str, options: Options) -> list[str]:
    code = runs.code_version()
    commit = code.get("commit", "unknown")[:12] + (" with uncommitted changes" if code.get("uncommitted") else "")
    return [
        f"# {table.title}",
        "",
        f"Made by `make bench` (`scripts/benchmark.py {name}`); the numbers stand in `{name}.csv`.",
        "",
        f"- what is timed: {table.problem}",
        f"- device: {device_name(options.device)}, {torch.get_num_threads()} threads",
        f"- torch {torch.__version__}, {time.strftime('%Y-%m-%d', time.gmtime())}, git commit {commit}",
        f"- {options.repeats} repeats; in each, all cases in turn, each for about {options.milliseconds:g} ms",
        f"- ratio: time / time of `{table.base}` in the same repeat, the median of {table.copies} copies with",
        "  memory of their own; the median over the repeats, and the range that holds the middle 80 % of them. In the",
        "  first row that is the range of the copies, noise alone",
        "",
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


def _remarks(table: Table) -> list[str]:
    return ["", *(f"- {remark}" for remark in table.remarks)] if table.remarks else []
