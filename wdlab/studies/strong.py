"""Probes of strong regularization (P3): the strength in force, and the network without its small weights.

As those of :mod:`wdlab.studies.checkpoints`, they take the directory of a finished run and return a table with a column
``step``. ``configs/figure`` names them, and ``wdlab.analysis.tables`` calls them.
"""

import json
import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from wdlab import evaluate
from wdlab.errors import WdlabError
from wdlab.homogeneous import weights
from wdlab.metrics.objective import evaluate_split
from wdlab.metrics.sparsity import ZERO
from wdlab.records.directory import RunDirectory

FIRST_STEP = 1  # the log line before the first step has the strength of no step
FLOAT_BYTES = 4
FALLEN = 0.2  # a norm has fallen when it is at most this share of its first value
NORMS = {"loss_gradient": "gradient/full_weights_norm", "weights": "norm/weight_l2"}
INDEX_BYTES = {2: 2**15 - 1, 4: 2**31 - 1}  # the largest number in a signed integer of so many bytes


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


def falls(run: RunDirectory) -> pd.DataFrame:
    """Return when the norms of the loss gradient and of the weights have fallen to a fifth of their first value.

    Returns:
        A row for each ``quantity``: ``loss_gradient``, the gradient on the whole training split by the decayed weights
        (``train.full_gradient_every``), and ``weights``, the decayed weights. The other columns are ``step``, the last
        step; ``steps``, the first logged step with at most a fifth of the first value, or the last step if there is
        none; ``fallen``, whether there is one; and ``share_at_the_end``, the last value divided by the first.

    Raises:
        WdlabError: if one of the norms was not logged.
    """
    lines, rows = [json.loads(line) for line in run.metrics.read_text().splitlines()], []
    for quantity, metric in NORMS.items():
        logged = pd.Series({line["step"]: line[metric] for line in lines if metric in line}, dtype=float)
        if logged.empty:
            raise WdlabError(f"{run.path}: {metric} was not logged")
        shares = logged / logged.iloc[0]
        low = shares.index[shares <= FALLEN]
        row = {
            "quantity": quantity,
            "step": lines[-1]["step"],
            "steps": low[0] if len(low) else logged.index[-1],
            "fallen": bool(len(low)),
            "share_at_the_end": shares.iloc[-1],
        }
        rows.append(row)
    return pd.DataFrame(rows)


def compressed(run: RunDirectory) -> pd.DataFrame:
    """Return size and accuracy of a run's final network with its small decayed weights at zero.

    L1 in the gradient makes no exact zeros: a weight without a use oscillates around zero by about one step of the
    penalty. Weights below the length of this step, ``lr s / (1 - momentum)`` for SGD, are therefore set to zero, and
    the accuracy is measured after that.

    Returns:
        A row for each ``cut``: ``exact``, which leaves the network unmodified but for weights below 1e-13, and
        ``one_step``. The other columns are ``step``; ``threshold``, the size below which weights are zero; ``density``,
        the share of the decayed weights that are left; ``compression``, bytes of the network in float32 divided by its
        bytes with sparse weights, see :func:`sparse_bytes`; ``val_accuracy`` and ``test_accuracy`` after zeroing; and
        ``test_accuracy_change``, after minus before.
    """
    opened = evaluate.open_run(run.path)
    model, splits, autocast = opened.built.model, opened.data, opened.machine.autocast
    lr = json.loads(run.metrics.read_text().splitlines()[-1])["lr"]
    settings = opened.config["regularizer"]
    step_length = lr * settings.get("strength", 0.0) / (1 - opened.config["optimizer"].get("momentum", 0.0))
    decayed = [w.detach() for w in weights(model)]
    others = sum(p.numel() for p in model.parameters()) - sum(w.numel() for w in decayed)
    before, rows = evaluate_split(model, splits.test, autocast)[1].item(), []
    for cut, threshold in (("exact", ZERO), ("one_step", max(step_length, ZERO))):
        for w in decayed:
            w.masked_fill_(w.abs() < threshold, 0)
        dense = FLOAT_BYTES * (others + sum(w.numel() for w in decayed))
        accuracy = evaluate_split(model, splits.test, autocast)[1].item()
        row = {
            "cut": cut,
            "step": opened.state["step"],
            "threshold": threshold,
            "density": _count(decayed) / sum(w.numel() for w in decayed),
            "compression": dense / (FLOAT_BYTES * others + sum(sparse_bytes(w) for w in decayed)),
            "val_accuracy": evaluate_split(model, splits.val, autocast)[1].item(),
            "test_accuracy": accuracy,
            "test_accuracy_change": accuracy - before,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def sparse_bytes(weight: Tensor) -> int:
    """Return the bytes of a weight tensor in compressed sparse rows, or dense if that is less, with float32 values.

    A row is all weights of one output unit or channel. Each weight that is not zero has a value of 4 bytes and a column
    index; each row has a pointer, and there is one more. Indices and pointers have 2 bytes where the largest of them
    fits, else 4.
    """
    rows, columns = len(weight), math.prod(weight.shape[1:])
    left = _count([weight])
    sparse = left * (FLOAT_BYTES + _index_bytes(columns - 1)) + (rows + 1) * _index_bytes(left)
    return min(sparse, FLOAT_BYTES * weight.numel())


def _index_bytes(largest: int) -> int:
    """Return the bytes of an index up to ``largest``."""
    return next(size for size, most in INDEX_BYTES.items() if largest <= most)


def _count(tensors: Iterable[Tensor]) -> int:
    """Return the number of elements of several tensors that are not zero."""
    return sum(int(torch.count_nonzero(t)) for t in tensors)
