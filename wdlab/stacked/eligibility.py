"""The check whether a run can be part of a stack.

Methods, schedules, networks and drop-in optimizers declare by attributes whether they can be stacked.
"""

from typing import Any

import torch

from wdlab.data import Environment
from wdlab.engine.experiment import Experiment

TORCH_OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # their steps are in `steps.py`


def why_not_stacked(config: Any, experiment: Experiment) -> str | None:
    """Return the reason, in words, why a run has to be trained alone; None if it can be part of a stack.

    Args:
        config: the config of the run.
        experiment: the objects that the run trains with.
    """
    optimizer, method, machine = experiment.optimizer, experiment.regularizer, experiment.machine
    group = optimizer.param_groups[0]
    if not vars(type(experiment.model)).get("stackable", False):
        return f"model={config['model']['name']} is no MLP"
    if isinstance(experiment.data, Environment):
        return f"dataset={config['dataset']['name']} is an environment"
    if config["dataset"].get("augment"):
        return "dataset.augment varies its training examples"
    if config["train"]["label_smoothing"]:
        return "train.label_smoothing is for runs that are trained alone"
    if config["train"]["average_decay"]:
        return "train.average_decay is for runs that are trained alone"
    if machine.precision == "bf16" or machine.compiled:
        return "runtime.precision=bf16 and runtime.compile are for runs that are trained alone"
    if type(optimizer) not in TORCH_OPTIMIZERS and not getattr(optimizer, "stacked_settings", ()):
        return f"optimizer={config['optimizer']['name']} has no step for several runs at once"
    if group.get("maximize"):
        return "optimizer.maximize is for runs that are trained alone"
    if group.get("amsgrad") and type(optimizer) not in TORCH_OPTIMIZERS:
        return f"optimizer.amsgrad of optimizer={config['optimizer']['name']} is for runs that are trained alone"
    if group["weight_decay"] and type(optimizer) in (torch.optim.SGD, torch.optim.Adam):
        return "optimizer.weight_decay is for runs that are trained alone; regularizer=l2 is the same"
    if obstacle := method.obstacle_to_stacking(optimizer):
        return f"regularizer={config['regularizer']['name']}: {obstacle}"
    return None
