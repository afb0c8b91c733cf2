"""Measure the costs of wdlab's parts and of alternatives, and write them as tables. Called by ``make bench``.

python scripts/benchmark.py optimizers
"""

import argparse
import sys
from pathlib import Path

import wdlab  # noqa: F401, before torch: sets how long torch's threads spin while they wait

# isort: split
import torch
from benchmarks import busy, commits, figures, gpu, growth, inputs, ledger, loop, optimizers, pages, stacked, training
from benchmarks.timing import Options

from wdlab.engine import cpu

SECTIONS = {
    "optimizers": optimizers.table,
    "inputs": inputs.table,
    "training": training.table,
    "loop": loop.table,
    "stacked": stacked.table,
    "ledger": ledger.table,
    "growth": growth.table,
    "busy": busy.table,
    "figures": figures.table,
    "gpu": gpu.table,
    "commits": commits.table,
}


def main() -> None:
    """Run the command line: measure the named sections, or all sections if none is named."""
    parser = argparse.ArgumentParser(description="Measure the costs of wdlab's parts and of alternatives.")
    parser.add_argument("sections", nargs="*", metavar="section", help=", ".join(SECTIONS))
    parser.add_argument(
        "--repeats", type=int, default=50, help="measurements of every case, at least 2; fewer for slow cases"
    )
    parser.add_argument("--milliseconds", type=float, default=8.0, help="duration of one measurement of a fast case")
    parser.add_argument("--width", type=int, default=400, help="width of the MLP that is trained")
    parser.add_argument("--no-compiled", action="store_true", help="leave out the cases that need a compiler")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to test that everything runs; the numbers mean nothing"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument(
        "--out", type=Path, default=Path("results/benchmarks"), help="folder in which the tables are written"
    )
    parser.add_argument("--against", type=Path, help="a checkout of another commit, for the section commits")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"section {unknown[0]}: must be one of {', '.join(SECTIONS)}")
    if arguments.repeats < 2:
        parser.error(f"--repeats {arguments.repeats}: must be at least 2")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is visible here")
    device = torch.device("cuda" if arguments.device != "cpu" and torch.cuda.is_available() else "cpu")
    options = Options(
        device,
        arguments.repeats,
        arguments.milliseconds,
        arguments.width,
        not arguments.no_compiled,
        arguments.quick,
        arguments.against,
    )
    cpu.available_threads()  # counted once, before a section sets torch's number of threads
    for name in arguments.sections or SECTIONS:
        table = SECTIONS[name](options)
        if table is None:
            print(f"{name}: left out, it does not apply here (device {device.type})", file=sys.stderr)
            continue
        page = pages.write(table, name, options, arguments.out)
        print(page.read_text(), end="")
        print(f"table    {page}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
