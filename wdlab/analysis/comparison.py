"""The comparison of a figure's tables and verdicts with earlier ones of the same figure.

Called by ``scripts/reproduce.py``. Another processor rounds differently, and training magnifies rounding, so two
machines never make the same numbers. Two results *agree* if they have the same rows and the same verdicts, and if each
group's mean in a claim differs by at most ``MEANS_WITHIN``. Single numbers in the tables may differ by more, since a
mean over the seeds is steadier than a number at one step of one run.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from wdlab.analysis.tables import FigureFiles

MEANS_WITHIN = 0.05  # relative; fig6 at quick scale (3 seeds), made without vector instructions, differed by 0.021
KEYS = ("panel", "run", "seed", "step")  # columns of whole numbers and names that must be equal
TIMES = ("latency",)  # columns that depend on what else the machine does

Claims = Mapping[tuple[str, str], Mapping[str, Any]]  # by panel and id


class Difference(NamedTuple):
    """A relative difference between two numbers, and which number it is."""

    size: float
    where: str

    def __str__(self) -> str:
        percent = 100 * self.size
        return f"{percent:{'.0f' if percent >= 10 else '.2g'}} % ({self.where})"


class Comparison(NamedTuple):
    """An answer to whether two results of a figure agree, and a clause that names what they differ in most."""

    agree: bool
    text: str


def compare(ours: FigureFiles, theirs: FigureFiles) -> Comparison:
    """Compare the tables and verdicts of a figure in two places.

    Args:
        ours: the files that have just been written.
        theirs: the files that they are compared with.
    """
    differences = [of_tables(pd.read_csv(ours.table), pd.read_csv(theirs.table))]
    if ours.measured.exists() and theirs.measured.exists():
        differences.append(of_tables(pd.read_csv(ours.measured), pd.read_csv(theirs.measured)))
    our_claims, their_claims = _claims(ours), _claims(theirs)
    if None in differences or set(our_claims) != set(their_claims):
        return Comparison(False, "they have other runs, columns or claims")
    numbers = max(differences)
    changed = [
        f"{place[1]} on {place[0]} is {our_claims[place]['verdict']}, not {claim['verdict']}"
        for place, claim in their_claims.items()
        if claim["verdict"] != our_claims[place]["verdict"]
    ]
    if changed:
        return Comparison(False, f"{'; '.join(changed)}. A number in the tables differs by up to {numbers}")
    means = of_claims(our_claims, their_claims)
    if means.size == numbers.size == 0:
        return Comparison(True, "equal in every number")
    text = f"the same verdicts; the means behind them differ by up to {means}, numbers in the tables by up to {numbers}"
    return Comparison(means.size <= MEANS_WITHIN, text)


def of_tables(ours: pd.DataFrame, theirs: pd.DataFrame) -> Difference | None:
    """Return the largest relative difference between two tables.

    Times are left out, and so are metrics that only ``ours`` has, which were added later. A number missing in one
    of the tables differs by infinity.

    Args:
        ours: a table of runs or of probes, as ``tables`` makes them.
        theirs: the table that it is compared with.

    Returns:
        The largest difference, relative to the larger of both numbers; None if ``ours`` lacks a column, or the
        tables do not have the same rows, by ``KEYS`` and by all columns of words.
    """
    if not set(theirs) <= set(ours) or len(ours) != len(theirs):
        return None
    ours = ours[list(theirs)]
    compared = [column for column in ours if column not in TIMES]
    numeric = [c for c in compared if c not in KEYS and ours[c].dtype.kind in "iufb" and theirs[c].dtype.kind in "iufb"]
    words = [column for column in compared if column not in numeric]
    keys = [column for column in KEYS if column in words]
    ours, theirs = (table.sort_values(keys, kind="stable", ignore_index=True) for table in (ours, theirs))
    if not ours[words].equals(theirs[words]):
        return None
    sizes = relative(ours[numeric].to_numpy(float), theirs[numeric].to_numpy(float))
    row, column = np.unravel_index(sizes.argmax(), sizes.shape)
    at = ours.loc[row]
    of = at["panel"] if pd.isna(at["run"]) else at["run"]
    return Difference(float(sizes[row, column]), f"{numeric[column]} of {of} at step {at['step']}")


def of_claims(ours: Claims, theirs: Claims) -> Difference:
    """Return the largest relative difference between the means of the groups in judged claims.

    A difference is relative to the larger of both means, or to the claim's ``smallest_difference`` if that is larger: a
    mean near zero may change by any factor without changing what the claim compares.

    Args:
        ours: the judged claims by panel and id.
        theirs: the claims that they are compared with, with the same panels and ids.
    """
    differences = [Difference(0.0, "")]
    for place, claim in ours.items():
        for mean in ("a_mean", "b_mean"):
            values = np.array([claim[mean], theirs[place][mean]], dtype=float)  # None becomes NaN
            size = relative(*values, least=abs(claim["smallest_difference"]))
            differences.append(Difference(float(size), f"{mean} of {place[1]} on {place[0]}"))
    return max(differences)


def relative(x: np.ndarray | float, y: np.ndarray | float, least: float = 0.0) -> np.ndarray:
    """Return ``|x - y| / max(|x|, |y|, least)``: 0 for equal or two missing numbers, infinity if one is missing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = np.abs(np.subtract(x, y)) / np.maximum(np.maximum(np.abs(x), np.abs(y)), least)
    sizes = np.where(np.isnan(sizes), np.inf, sizes)
    return np.where(np.equal(x, y) | (np.isnan(x) & np.isnan(y)), 0.0, sizes)


def _claims(files: FigureFiles) -> Claims:
    """Return the judged claims in a figure's file by panel and id."""
    judged = json.loads(files.verdicts.read_text())
    return {(claim["panel"], claim["id"]): claim for claim in judged["claims"]}
