"""Rows of a tidy table: a group of runs, last log lines, summaries over seeds. Used by claims and plots."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from wdlab.errors import ConfigError

NOT_SETTINGS = ("panel", "run", "seed")  # columns that stand with the settings of a run, and are none


def select(table: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of a table that pass a filter.

    Args:
        table: the rows.
        where: the required value by column, or a list of the values that are allowed.

    Raises:
        ConfigError: if the table has no such column.
    """
    chosen = pd.Series(True, index=table.index)
    for column, value in where.items():
        if column not in table:
            raise ConfigError(f"a claim selects {column}={value}, which does not vary between these runs")
        chosen &= table[column].isin(value if isinstance(value, list) else [value])
    return table[chosen]


def last_lines(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the row of each run's last log line. A run that is in several panels has one row for each of them."""
    of_a_run = [column for column in ("panel", "run") if column in rows]
    return rows.sort_values("step", kind="stable").groupby(of_a_run, sort=False).tail(1)


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a figure's table without those of the trials of a search, which no claim is about."""
    return rows[rows["stage"] != "trial"] if "stage" in rows else rows


def diverged(rows: pd.DataFrame) -> set[str]:
    """Return the names of the runs in a figure's table whose last log line has no finite train loss.

    In a panel where no run has a train loss, such as one of rewards, no run counts as diverged.
    """
    if "train/loss" not in rows:
        return set()
    last = last_lines(rows.dropna(subset=["run"]))
    measured = set(rows.loc[rows["train/loss"].notna(), "panel"])
    return set(last.loc[last["panel"].isin(measured) & last["train/loss"].isna(), "run"])


def setting_columns(rows: pd.DataFrame) -> list[str]:
    """Return the columns of a table that hold settings: all before ``step`` except ``panel``, ``run`` and ``seed``."""
    return [column for column in rows.columns[: list(rows).index("step")] if column not in NOT_SETTINGS]


def settings(rows: pd.DataFrame) -> pd.Series:
    """Return the number of each row's setting, from 0: rows with equal values in all ``setting_columns`` share it."""
    columns = setting_columns(rows)
    return rows.groupby(columns, dropna=False, sort=False).ngroup() if columns else pd.Series(0, index=rows.index)


def summarize_over_seeds(rows: pd.DataFrame, by: str | Sequence[str], columns: list[str]) -> pd.DataFrame:
    """Return mean, median, least and largest value over the seeds, for each column and each value of ``by``.

    A value of ``by`` at which a seed has no value is left out, since the mean over only those seeds that did not
    diverge is another quantity.

    Args:
        rows: the rows of one method, with a column ``seed``.
        by: the column to group by, such as ``step``; or several.
        columns: the columns to summarize.

    Returns:
        A table indexed by the values of ``by``, with columns (column, ``mean``), (column, ``median``), (column,
        ``min``), (column, ``max``).
    """
    grouped = rows.groupby(by)[columns]
    complete = (grouped.count() == rows["seed"].nunique()).all(axis=1)
    return grouped.agg(["mean", "median", "min", "max"])[complete]
