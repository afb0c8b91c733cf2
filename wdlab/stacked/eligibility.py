"""The reasons why a run cannot be part of a stack."""

from collections.abc import Mapping
from typing import Any

import torch

from wdlab import regularizers
from wdlab.engine.experiment import Experiment
from wdlab.models import MLP, FactorizedMLP
from wdlab.optimizers import SGDS, PAdam
from wdlab.regularizers import Regularizer
from wdlab.regularizers.checks import is_sgd
from wdlab.regularizers.in_loss import InLoss

NETWORKS = (MLP, FactorizedMLP)
OPTIMIZERS = (torch.optim.SGD, SGDS, torch.optim.Adam, torch.optim.AdamW, PAdam)
METHODS = (
    *(Regularizer, regularizers.L2, regularizers.L1, regularizers.Lp, regularizers.DecoupledDecay),
    *(regularizers.ScheduledDecay, regularizers.PNormDecay, regularizers.PNormProx, regularizers.PathProx),
)
ROUTES = ("both", "decoupled")
BY_THE_CLOCK = (regularizers.Early, regularizers.Delayed, regularizers.WarmUp)


def why_not_stacked(config: Mapping[str, Any], experiment: Experiment) -> str | None:
    """Why a run has to be trained by itself; None if it can be part of a stack."""
    optimizer, method, machine = experiment.optimizer, experiment.regularizer, experiment.machine
    group = optimizer.param_groups[0]
    if type(experiment.model) not in NETWORKS:
        return f"model={config['model']['name']} is no MLP"
    if config["dataset"].get("augment"):
        return "dataset.augment varies its training examples"
    if config["train"]["label_smoothing"]:
        return "train.label_smoothing is for runs by themselves"
    if config["train"]["average_decay"]:
        return "train.average_decay is for runs by themselves"
    if machine.precision == "bf16" or machine.compiled:
        return "runtime.precision=bf16 and runtime.compile are for runs by themselves"
    if type(optimizer) not in OPTIMIZERS:
        return f"optimizer={config['optimizer']['name']} takes its scale from the gradients of one run"
    if group.get("maximize") or group.get("amsgrad"):
        return "optimizer.maximize and optimizer.amsgrad are for runs by themselves"
    if group["weight_decay"] and type(optimizer) in (torch.optim.SGD, torch.optim.Adam):
        return "optimizer.weight_decay is for runs by themselves; regularizer=l2 is the same"
    if type(method) not in METHODS:
        return f"regularizer={config['regularizer']['name']} looks at the gradients of one run"
    if isinstance(method, InLoss) and method.route not in ROUTES:
        return f"regularizer.route={method.route} keeps a moment of one run"
    for schedule in method.over_time:
        if not isinstance(schedule, BY_THE_CLOCK) and not is_sgd(group):
            return f"{type(schedule).__name__} takes its strength from the gradients of one run"
        if isinstance(schedule, regularizers.CoherenceGate):
            return "CoherenceGate takes its strength from the gradients of one run"
    return None
