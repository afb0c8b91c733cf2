"""Writing of the measured tables: ``<section>.csv`` with the numbers, ``<section>.md`` for readers."""

import csv
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.timing import Comparison, Options, Page, Part, Row, Table
from wdlab.engine import cpu
from wdlab.engine.device import device_name
from wdlab.records.provenance import code_version


def write(table: Table | Page, name: str, options: Options, folder: Path) -> Path:
    """Write ``<name>.csv`` and ``<name>.md`` into ``folder``, and return the path of the ``.md`` file."""
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
    """Return a float as text with four significant digits, and any other value unmodified."""
    return f"{value:.4g}" if isinstance(value, float) else value


def _header(title: str, name: str) -> list[str]:
    """Return the first lines of the page of section ``name``."""
    lines = [f"# {title}", ""]
    return [*lines, f"Made by `make bench` (`scripts/benchmark.py {name}`); the numbers are in `{name}.csv`.", ""]


def _machine(options: Options) -> list[str]:
    """Return the lines that name the device, the version of torch, the date and the commit."""
    code = code_version()
    commit = code.get("commit", "unknown")[:12] + (" with uncommitted changes" if code.get("uncommitted") else "")
    return [
        f"- device: {device_name(options.device)}, {cpu.available_threads()} threads",
        f"- torch {torch.__version__}, {time.strftime('%Y-%m-%d', time.gmtime())}, git commit {commit}",
    ]


def _remarks(remarks: Sequence[str]) -> list[str]:
    """Return the lines of a Markdown list of the remarks; no lines without remarks."""
    return ["", *(f"- {remark}" for remark in remarks)] if remarks else []


# -- one table


def _numbers(table: Table) -> list[list[object]]:
    """Return the CSV file's rows for a section with a single table, the header first."""
    columns = list(Row.__dataclass_fields__)
    return [columns, *([getattr(row, column) for column in columns] for row in table.rows)]


def _one_table(table: Table, options: Options) -> list[str]:
    """Return the Markdown lines of a page with a single table, after its header."""
    return [
        f"- work: {table.problem}",
        *_machine(options),
        f"- {options.repeats} repeats; in each, all cases in turn, each for about {options.milliseconds:g} ms",
        f"- ratio: time / time of `{table.base}` in the same repeat, the median of {table.copies} copies with",
        "  separate memory; the median over the repeats, and the range of the middle 80 % of them. In the first row",
        "  that is the range of the copies, which is noise alone",
        "",
        *_lines(table),
    ]


def _lines(table: Table) -> list[str]:
    """Return the Markdown lines of a single table."""
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
    """Return the CSV file's rows for a page of several parts, the header first."""
    columns = list(Comparison.__dataclass_fields__)
    header = ["part", *columns[:4], "quantity", *columns[4:]]
    rows = []
    for each in page.parts:
        for row in each.rows:
            values = [getattr(row, column) for column in columns]
            rows.append([each.title, *values[:4], each.quantity.name, *values[4:]])
    return [header, *rows]


def _parts(page: Page, options: Options) -> list[str]:
    """Return the Markdown lines of a page of several parts, after its header."""
    lines = [
        *_machine(options),
        "- in each repeat all cases of a table are timed in turn; ratios and speed-ups are taken within a repeat. The",
        "  columns show the median over the repeats and the range of the middle 80 % of them",
    ]
    for each in page.parts:
        lines += ["", f"## {each.title}", "", f"- work: {each.problem}"]
        lines += [f"- {each.repeats} repeats; {each.quantity.explained}", "", *_lines_of_part(each)]
        lines += _remarks(each.remarks)
    return lines


def _lines_of_part(each: Part) -> list[str]:
    """Return the Markdown lines of a part's table."""
    per_second = f" {each.items[1]}/s |" if each.items else ""
    lines = [
        f"| case | compared with | median, ms |{per_second} {each.quantity.name} | 10-90 % | target | met | note |",
        f"| --- | --- | ---: |{' ---: |' if per_second else ''} ---: | --- | --- | --- | --- |",
    ]
    for row in each.rows:
        target = "" if row.target is None else f"{each.quantity.sign} {row.target:g}"
        items = f" {row.per_second:.4g} |" if row.per_second else ""
        value, low, high = (_short(v) for v in (row.value, row.value_10, row.value_90))
        cells = f"{row.median_us / 1000:.4g} |{items} {value} | {low}-{high} | {target} | {row.met} | {row.note}"
        lines.append(f"| {row.case} | {'' if row.against == row.case else row.against} | {cells} |")
    return lines


def _short(value: float) -> str:
    """Return a number as text with few digits: three decimals below 0.1, two below 10, else one."""
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
