"""The style of all figures: sizes, and a look for each method, distinct in grey print and for colour-blind readers."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd

# The colours of Okabe and Ito: blue, vermilion, green, purple, black, sky blue.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "D", "^", "v")

Method = tuple[str, float | None]  # name of the regularizer, and its p; None if it has no p


class Look(NamedTuple):
    """The look of a method: its colour, line style and marker, as matplotlib names them, and its label."""

    color: str
    line: Any
    marker: str
    label: str


# The looks of the methods that the figures compare, in the order in which a picture shows them.
LOOKS: dict[Method, Look] = {
    ("none", None): Look(PALETTE[4], ":", "x", "no regularization"),
    ("l2", None): Look(PALETTE[0], "--", "o", "weight decay (SGD)"),
    ("pathprox", None): Look(PALETTE[1], "-", "D", "PathProx"),
    ("pnorm", 0.5): Look(PALETTE[1], "-", "o", "p = 0.5"),
    ("pnorm", 0.8): Look(PALETTE[3], "-", "s", "p = 0.8"),
    ("pnorm", 1.0): Look(PALETTE[2], "--", "D", "p = 1"),
    ("pnorm", 1.5): Look(PALETTE[5], "-.", "^", "p = 1.5"),
    ("decoupled", None): Look(PALETTE[0], ":", "v", "p = 2 (AdamW)"),
    ("magnitude_pruning", None): Look(PALETTE[0], "--", "P", "AdamW, pruned"),
    ("pnorm_prox", 1.0): Look("0.45", "--", "x", "soft threshold"),
    ("lp", 0.8): Look(PALETTE[4], ":", "+", "Lp, p = 0.8, in the gradient"),
}

# Colours, line styles and markers of methods that are not in LOOKS, used in turn. First come colours that LOOKS uses
# least.
_OTHER_COLORS = (*PALETTE[2:], *PALETTE[:2])
_OTHER_LINES = ("-.", "-", "--", ":")
_OTHER_MARKERS = ("s", "^", "v", "P", "*", "X", "h")

RC = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "wdlab",
}


def context() -> AbstractContextManager[None]:
    """Return a context manager in which matplotlib draws and saves figures with this style."""
    return mpl.rc_context(RC)


def looks_by_method(table: pd.DataFrame) -> dict[Method, Look]:
    """Return the look of each method in a table, in the order in which a picture shows them.

    The methods of ``LOOKS`` come first. Other methods follow in alphabetical order. Each is labelled by its name and p,
    and its colour, line style and marker depend on its place among the other methods.

    Args:
        table: the rows of all panels of a figure, so that a method has the same look in all panels.
    """
    present = set(_methods(table))
    known = {method: look for method, look in LOOKS.items() if method in present}
    others = sorted(present - set(LOOKS), key=str)
    return known | {method: _other_look(method, place) for place, method in enumerate(others)}


def by_method(rows: pd.DataFrame, look_of: Mapping[Method, Look]) -> Iterator[tuple[str, Look, pd.DataFrame]]:
    """Yield the regularizer's name, the look and the rows of each method that occurs in some rows.

    Args:
        rows: some rows of a figure, such as the rows of a panel.
        look_of: the looks of the figure's methods, as :func:`looks` returns them.
    """
    methods = pd.Series(_methods(rows), index=rows.index, dtype=object)
    for method, look in look_of.items():
        part = rows[[each == method for each in methods]]
        if len(part):
            yield method[0], look, part


def _methods(rows: pd.DataFrame) -> list[Method]:
    """Return the method of each row: the name of the regularizer, and its p or None."""
    names = rows["regularizer"].tolist()
    exponents = rows["regularizer.p"].tolist() if "regularizer.p" in rows else [None] * len(rows)
    return [(name, None if pd.isna(p) else float(p)) for name, p in zip(names, exponents, strict=True)]


def _other_look(method: Method, place: int) -> Look:
    """Return the look of a method that is not in ``LOOKS``. ``place`` counts the methods that are not in ``LOOKS``."""
    name, p = method
    turns = (kinds[place % len(kinds)] for kinds in (_OTHER_COLORS, _OTHER_LINES, _OTHER_MARKERS))
    return Look(*turns, name if p is None else f"{name}, p = {p:g}")
