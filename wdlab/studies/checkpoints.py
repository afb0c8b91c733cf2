"""Probes: functions that measure the checkpoint of a finished run for a figure.

A probe takes a run's directory and returns a table with a column ``step``. ``configs/figure`` names the probes of a
figure, and ``wdlab.analysis.tables`` calls them. Columns before ``step`` say what a row is about; those after it are
measured, and are not used for a run that diverged.
"""

import json
import math

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from wdlab import evaluate, pruning
from wdlab.build import build_parts
from wdlab.homogeneous import homogeneous_pairs, input_norms, output_norms, weights
from wdlab.metrics.full_gradient import loss_and_gradient, norm_of, times_weights
from wdlab.metrics.objective import evaluate_split
from wdlab.metrics.sparsity import ZERO
from wdlab.records import checkpoint
from wdlab.records.directory import RunDirectory
from wdlab.regularizers import Regularizer

LOG10_SIZE_RANGE = (-13, 1)  # log10 of the smallest and the largest |w| in a histogram
BINS_PER_DECADE = 4
IN_USE_ABOVE = 0.01  # a unit with at most this share of the largest path of its pair is not in use
SMALL_PATHS = (0.0, 0.1)  # shares of the largest path of a pair; units with smaller ones are removed
UNITS_TOLD = 100  # of each pair, evenly spaced, to keep the table of wide networks small
ZEROED_BELOW = (1e-13, 1e-10, 1e-6, 1e-4, 1e-3, 1e-2)  # sizes |w|; smaller weights are set to zero
MIDDLE_BELOW = 1e-4  # a weight with ZERO <= |w| < MIDDLE is in the middle: neither dead nor alive


def unit_norms(run: RunDirectory) -> pd.DataFrame:
    """Return the norms of homogeneous units (see :mod:`wdlab.homogeneous`) at the first and last step of a run.

    Returns:
        A row per step and unit (of wide pairs 100 evenly spaced units), with the columns ``step``, ``pair`` and
        ``unit`` (numbers from 0), ``input_norm`` |w|, ``output_norm`` |v|, ``path_share``, the path |w||v| divided by
        the largest path of the pair, and ``in_use``, True if this share is above 0.01. The column ``imbalance_in_use``
        is the same in all rows of a step: the share by which ``sum (|w|^2 + |v|^2) / 2`` over all units in use exceeds
        their path-norm ``sum |w||v|``; NaN if no unit is in use.
    """
    model, state = _as_begun(run), checkpoint.load_or_raise(run)
    parts = [_norms(model, 0)]
    model.load_state_dict(state["model"])
    parts.append(_norms(model, state["step"]))
    return pd.concat(parts, ignore_index=True)


def _norms(model: nn.Module, step: int) -> pd.DataFrame:
    """Return the norms of a network's homogeneous units, in the columns of :func:`unit_norms`.

    Args:
        model: the network, on the CPU.
        step: the value for the column ``step``.
    """
    parts = []
    with torch.no_grad():
        for number, (first, second) in enumerate(homogeneous_pairs(model)):
            inputs, outputs = input_norms(first).double().numpy(), output_norms(second).double().numpy()
            columns = {"input_norm": inputs, "output_norm": outputs, "path_share": _shares(inputs * outputs)}
            parts.append(pd.DataFrame({"step": step, "pair": number, "unit": range(len(inputs)), **columns}))
    units = pd.concat(parts, ignore_index=True)
    units["in_use"] = units["path_share"] > IN_USE_ABOVE
    used = units[units["in_use"]]
    squares = (used["input_norm"] ** 2 + used["output_norm"] ** 2).sum()
    products = (used["input_norm"] * used["output_norm"]).sum()
    units["imbalance_in_use"] = 1 - 2 * products / squares if squares > 0 else math.nan
    places = units.groupby("pair")["unit"].transform(lambda numbers: (numbers * UNITS_TOLD) // len(numbers))
    told = ~units.assign(place=places).duplicated(["pair", "place"])
    return units[told].reset_index(drop=True)


def _shares(paths: np.ndarray) -> np.ndarray:
    """Return the paths of a pair divided by the largest of them; zeros if all are zero."""
    return paths / paths.max() if paths.max() > 0 else np.zeros_like(paths)


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
    """Return the effect of removing the dead and the small units of a run's final network.

    Returns:
        A row for each ``share`` in ``SMALL_PATHS``: units whose path is below this share of the largest one of their
        pair are removed (see :func:`wdlab.pruning.prune_small_units`); with share 0 only dead units. The other columns
        are ``step``; ``parameters`` and ``latency`` (of a batch, on this machine), both after divided by before;
        ``units``, the share of the units of homogeneous pairs that are left; ``val_accuracy`` and ``test_accuracy``
        after; and ``test_accuracy_change``, after minus before.
    """
    opened = evaluate.open_run(run.path)
    model, splits, autocast = opened.built.model, opened.data, opened.machine.autocast
    networks = [model, *(pruning.prune_small_units(model, share) for share in SMALL_PATHS)]
    batch, _ = splits.test.examples(slice(0, min(len(splits.test), opened.config["train"]["batch_size"])))
    with autocast():
        costs = pruning.footprints(networks, batch)
    before = evaluate_split(model, splits.test, autocast)[1].item()
    rows = []
    for share, network, cost in zip(SMALL_PATHS, networks[1:], costs[1:], strict=True):
        accuracy = evaluate_split(network, splits.test, autocast)[1].item()
        row = {
            "share": share,
            "step": opened.state["step"],
            "parameters": cost.parameters / costs[0].parameters,
            "latency": cost.latency_ms / costs[0].latency_ms,
            "units": _paired_units(network) / _paired_units(model),
            "val_accuracy": evaluate_split(network, splits.val, autocast)[1].item(),
            "test_accuracy": accuracy,
            "test_accuracy_change": accuracy - before,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _paired_units(model: nn.Module) -> int:
    """Return the number of units in all homogeneous pairs of a network."""
    return sum(len(first.weight) for first, _ in homogeneous_pairs(model))


def zeroed(run: RunDirectory) -> pd.DataFrame:
    """Return the effect of setting the small decayed weights of a run's final network to zero.

    Returns:
        A row for each ``threshold`` in ``ZEROED_BELOW``, with the columns ``step``, ``share`` (of the decayed weights
        that have ``|w|`` below the threshold), and ``train_accuracy`` and ``test_accuracy`` with these weights at zero.
    """
    opened = evaluate.open_run(run.path)
    model, splits, autocast = opened.built.model, opened.data, opened.machine.autocast
    decayed, rows = [w.detach() for w in weights(model)], []
    count = sum(w.numel() for w in decayed)
    for threshold in ZEROED_BELOW:
        small = [w.abs() < threshold for w in decayed]
        for w, mask in zip(decayed, small, strict=True):
            w.masked_fill_(mask, 0)
        row = {
            "threshold": threshold,
            "step": opened.state["step"],
            "share": sum(mask.sum().item() for mask in small) / count,
            "train_accuracy": evaluate_split(model, splits.train, autocast)[1].item(),
            "test_accuracy": evaluate_split(model, splits.test, autocast)[1].item(),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def gradients(run: RunDirectory) -> pd.DataFrame:
    """Return the norms of the gradients on the whole training split, in float32 and without dropout, at a run's end.

    The loss is the mean cross-entropy without label smoothing. The split is read in chunks of at most 250 examples.
    Without batch norm the result is exact. Batch norm normalizes each chunk by the statistics of the chunk, so that
    scaling a layer before it does not change the loss.

    Returns:
        One row, with the columns ``step``; ``loss_gradient``, the norm of the gradient of the loss by all trained
        parameters; ``total_gradient``, the norm of the gradient of the loss plus the penalty at the strength in force,
        which equals ``loss_gradient`` for methods whose steps do not minimize such a sum
        (``Regularizer.minimizes_penalty``), and in which a penalty with a kink at zero has the slope 0 there;
        ``gradient_times_weight``, the sum of ``|g_l||w_l|`` over the decayed weights ``w_l``, with ``g_l`` the gradient
        of the loss; and ``train_loss``, the loss.
    """
    opened = evaluate.open_run(run.path)
    model = opened.built.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss, slopes = loss_and_gradient(model, opened.data.train, parameters)
    gradient_of = dict(zip(parameters, slopes, strict=True))
    strength = json.loads(run.metrics.read_text().splitlines()[-1])["strength"]
    total = gradient_of | _with_penalty(opened.built.regularizer, strength, gradient_of)
    row = {
        "step": opened.state["step"],
        "loss_gradient": norm_of(gradient_of.values()),
        "total_gradient": norm_of(total.values()),
        "gradient_times_weight": times_weights(gradient_of, weights(model)),
        "train_loss": loss,
    }
    return pd.DataFrame([row])


@torch.no_grad()
def _with_penalty(method: Regularizer, strength: float, gradient_of: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    """Return the gradient of loss plus penalty by each parameter of a method; {} if its steps do not minimize it."""
    if not method.minimizes_penalty:
        return {}
    params = [p for p in method.params if p in gradient_of]
    slopes = method.penalty_gradient(params)
    return {p: gradient_of[p] + strength * r.double() for p, r in zip(params, slopes, strict=True)}


def _as_begun(run: RunDirectory) -> nn.Module:
    """Return a run's network with its initial weights, built from the run's config."""
    return build_parts(OmegaConf.create(run.read_config()))[0]
