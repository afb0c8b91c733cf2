"""Probes of strong regularization (P3): the strength that was in force, and the network after its small weights are zero.

As those of :mod:`wdlab.studies.checkpoints`, they take the directory of a finished run and return a table with a column
``step``. ``configs/figure`` names them, and ``wdlab.analysis.tables`` calls them.
"""

import json

import numpy as np
import pandas as pd

from wdlab.errors import WdlabError
from wdlab.records.directory import RunDirectory

FIRST_STEP = 1  # the log line before the first step has the strength of no step


def in_force(run: RunDirectory) -> pd.DataFrame:
    """Return the mean over a run's log lines of the strength in force, next to the accuracy at the end.

    A gate or a delay sets the strength to zero in some steps. The log lines are a sample of the steps, so a run that is
    measured needs many of them: with 50 lines the share of steps has a standard error of at most 0.07.

    Returns:
        One row, with the columns ``step``; ``mean_strength``, over all log lines after the first step, also those in
        which the strength is zero; ``share_in_force``, the share of these lines with a strength above zero;
        ``test_accuracy`` and ``val_loss`` at the last step.

    Raises:
        WdlabError: if the run has no log line after its first step.
    """
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    strengths = np.array([line["strength"] for line in lines if line["step"] >= FIRST_STEP])
    if not len(strengths):
        raise WdlabError(f"{run.path}: has no log line after the first step")
    row = {
        "step": lines[-1]["step"],
        "mean_strength": strengths.mean(),
        "share_in_force": (strengths > 0).mean(),
        "test_accuracy": lines[-1].get("test/accuracy"),
        "val_loss": lines[-1].get("val/loss"),
    }
    return pd.DataFrame([row])
