"""Probes of the checkpoints of finished runs. Named in ``configs/figure``, called by ``analysis.tables``.

Every probe takes a run and returns a table with a column ``step``. The result for a run that diverged is not used.
"""

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf
from torch import nn

from wdlab import evaluate
from wdlab.build import build
from wdlab.homogeneous import homogeneous_pairs, input_norms, output_norms, weights
from wdlab.metrics.sparsity import ZERO
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory

DECADES = (-13, 1)  # of |w| in a histogram
BINS_PER_DECADE = 4
MIDDLE = 1e-4  # a weight below it that is not zero is in the middle, neither dead nor alive


def unit_norms(run: RunDirectory) -> pd.DataFrame:
    """Return the norms of every homogeneous unit at the beginning and at the end of training.

    Columns: ``step, pair, unit`` (numbers), ``input_norm, output_norm``.
    """
    model, state = _as_begun(run), checkpoint.require(run)
    parts = [_norms(model, 0)]
    model.load_state_dict(state["model"])
    parts.append(_norms(model, state["step"]))
    return pd.concat(parts, ignore_index=True)


def _norms(model: nn.Module, step: int) -> pd.DataFrame:
    """Return the norms of every homogeneous unit of a network as rows of ``step``."""
    parts = []
    with torch.no_grad():
        for number, (first, second) in enumerate(homogeneous_pairs(model)):
            inputs, outputs = input_norms(first).numpy(), output_norms(second).numpy()
            columns = {"input_norm": inputs, "output_norm": outputs}
            parts.append(pd.DataFrame({"step": step, "pair": number, "unit": range(len(inputs)), **columns}))
    return pd.concat(parts, ignore_index=True)


def weight_sizes(run: RunDirectory) -> pd.DataFrame:
    """Return a histogram of the decayed weights: the ``share`` in each bin, by its left edge ``log10_size``.

    Two more shares are the same in every row: ``zero`` (below 1e-13) and ``middle`` (below 1e-4, but not zero).
    """
    model, state = _as_begun(run), checkpoint.require(run)
    model.load_state_dict(state["model"])
    sizes = torch.cat([w.detach().flatten() for w in weights(model)]).abs().double().numpy()
    edges = np.linspace(*DECADES, BINS_PER_DECADE * (DECADES[1] - DECADES[0]) + 1)
    alive = sizes[sizes >= ZERO]
    counts, _ = np.histogram(np.log10(alive), edges)
    shares = {"zero": 1 - len(alive) / len(sizes), "middle": float(np.mean((sizes >= ZERO) & (sizes < MIDDLE)))}
    return pd.DataFrame(
        {"step": state["step"], "log10_size": edges[:-1], "share": counts / len(sizes), **shares},
    )


def pruned(run: RunDirectory) -> pd.DataFrame:
    """Return the effect of pruning the dead units, in one row.

    Columns: ``step``, the shares of ``parameters`` and ``latency`` (of a batch, on this machine) that are left, the
    ``test_accuracy`` after pruning, and ``test_accuracy_change``.
    """
    found = evaluate.evaluate(run.path, [], prune=True)
    before, after = found["footprint"], found["pruned"]["footprint"]
    accuracies = [where["metrics"]["test/accuracy"] for where in (found, found["pruned"])]
    row = {
        "step": found["step"],
        "parameters": after.parameters / before.parameters,
        "latency": after.latency_ms / before.latency_ms,
        "test_accuracy": accuracies[1],
        "test_accuracy_change": accuracies[1] - accuracies[0],
    }
    return pd.DataFrame([row])


def _as_begun(run: RunDirectory) -> nn.Module:
    """Return a run's network with its initial weights."""
    return build(OmegaConf.create(run.read_config()))[0]
