"""Probes: functions that measure the checkpoint of a finished run for a figure.

A probe takes a run's directory and returns a table with a column ``step``. ``configs/figure`` names the probes of a
figure, and ``wdlab.analysis.tables`` calls them. The result for a run that diverged is not used.
"""

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf
from torch import nn

from wdlab import evaluate
from wdlab.build import build_parts
from wdlab.homogeneous import homogeneous_pairs, input_norms, output_norms, weights
from wdlab.metrics.sparsity import ZERO
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory

LOG10_SIZE_RANGE = (-13, 1)  # log10 of the smallest and the largest |w| in a histogram
BINS_PER_DECADE = 4
MIDDLE_BELOW = 1e-4  # a weight with ZERO <= |w| < MIDDLE is in the middle: neither dead nor alive


def unit_norms(run: RunDirectory) -> pd.DataFrame:
    """Return the norms of every homogeneous unit (see :mod:`wdlab.homogeneous`) at the first and last step of a run.

    Returns:
        A row per step and unit, with the columns ``step``, ``pair`` and ``unit`` (numbers from 0), ``input_norm`` and
        ``output_norm``.
    """
    model, state = _as_begun(run), checkpoint.load_or_raise(run)
    parts = [_norms(model, 0)]
    model.load_state_dict(state["model"])
    parts.append(_norms(model, state["step"]))
    return pd.concat(parts, ignore_index=True)


def _norms(model: nn.Module, step: int) -> pd.DataFrame:
    """Return the norms of every homogeneous unit of a network, in the columns of :func:`unit_norms`.

    Args:
        model: the network, on the CPU.
        step: the value for the column ``step``.
    """
    parts = []
    with torch.no_grad():
        for number, (first, second) in enumerate(homogeneous_pairs(model)):
            inputs, outputs = input_norms(first).numpy(), output_norms(second).numpy()
            columns = {"input_norm": inputs, "output_norm": outputs}
            parts.append(pd.DataFrame({"step": step, "pair": number, "unit": range(len(inputs)), **columns}))
    return pd.concat(parts, ignore_index=True)


def weight_sizes(run: RunDirectory) -> pd.DataFrame:
    """Return a histogram of the sizes ``|w|`` of the decayed weights at the end of a run, on a logarithmic scale.

    Returns:
        A row per bin, with the columns ``step``, ``log10_size`` (left edge of the bin) and ``share`` (of all decayed
        weights). Two more shares are the same in every row: ``zero`` (``|w| < 1e-13``) and ``middle`` (from 1e-13 to
        below 1e-4).
    """
    model, state = _as_begun(run), checkpoint.load_or_raise(run)
    model.load_state_dict(state["model"])
    sizes = torch.cat([w.detach().flatten() for w in weights(model)]).abs().double().numpy()
    edges = np.linspace(*LOG10_SIZE_RANGE, BINS_PER_DECADE * (LOG10_SIZE_RANGE[1] - LOG10_SIZE_RANGE[0]) + 1)
    alive = sizes[sizes >= ZERO]
    counts, _ = np.histogram(np.log10(alive), edges)
    shares = {
        "zero": 1 - len(alive) / len(sizes),
        "middle": float(np.mean((sizes >= ZERO) & (sizes < MIDDLE_BELOW))),
    }
    return pd.DataFrame(
        {"step": state["step"], "log10_size": edges[:-1], "share": counts / len(sizes), **shares},
    )


def pruned(run: RunDirectory) -> pd.DataFrame:
    """Return the effect of pruning the dead units of a run's final network.

    Returns:
        One row with the columns ``step``, ``parameters`` and ``latency`` (of a batch, on this machine), both after
        pruning divided by before pruning, ``test_accuracy`` (after pruning) and ``test_accuracy_change`` (after minus
        before).
    """
    results = evaluate.evaluate(run.path, [], prune=True)
    pruned_results = results["pruned"]
    before, after = results["footprint"], pruned_results["footprint"]
    accuracy_before, accuracy_after = results["metrics"]["test/accuracy"], pruned_results["metrics"]["test/accuracy"]
    row = {
        "step": results["step"],
        "parameters": after.parameters / before.parameters,
        "latency": after.latency_ms / before.latency_ms,
        "test_accuracy": accuracy_after,
        "test_accuracy_change": accuracy_after - accuracy_before,
    }
    return pd.DataFrame([row])


def _as_begun(run: RunDirectory) -> nn.Module:
    """Return a run's network with its initial weights, built from the run's config."""
    return build_parts(OmegaConf.create(run.read_config()))[0]
