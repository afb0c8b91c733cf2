"""Gathers the metrics that are due at a log point, with one transfer from the device."""

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wdlab.data import Data
from wdlab.homogeneous import Pair, homogeneous_pairs, unit_paths, weights
from wdlab.metrics import gradients, norms, objective, sparsity
from wdlab.regularizers import Regularizer


class Metrics:
    """Measures one model under one regularizer.

    The loop calls ``before_step`` between backward and step, ``after_step`` and ``measure`` behind the step; only at
    steps that are logged, so other steps cost nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        regularizer: Regularizer,
        autocast: objective.Autocast = contextlib.nullcontext,
        sharpness_examples: int = 1000,
    ) -> None:
        self.autocast = autocast
        self.model, self.data, self.regularizer = model, data, regularizer
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.weights = weights(model)
        self.pairs = _pairs_if_any(model)
        self._step_values: dict[str, Tensor] = {}
        self._before: list[Tensor] = []

    def before_step(self) -> None:
        """The gradient is that of the loss alone, the weights are still old."""
        self._step_values = {"gradient/loss_norm": gradients.gradient_norm(self.parameters)}
        self._before = [w.detach().clone() for w in self.weights]

    def after_step(self) -> None:
        """The weights are new."""
        self._step_values["update/relative"] = gradients.relative_update(self._before, self.weights)
        self._before = []

    def measure(self, whole_splits: bool, sharpness: bool = False) -> dict[str, float]:
        """The metrics of the model as it is, those of the last step included; with ``whole_splits`` the evaluations."""
        paths = unit_paths(self.pairs)
        values = dict(self._step_values)
        self._step_values = {}
        values["norm/weight_l2"] = norms.weight_norm(self.weights, 2)
        values["norm/weight_l1"] = norms.weight_norm(self.weights, 1)
        values["sparsity/weights"] = sparsity.zero_weights(self.weights)
        if paths:
            values["norm/path"] = norms.path_norm(paths)
            values["sparsity/active_units"] = sparsity.active_units(paths)
        if whole_splits:
            for name in ("train", "val", "test"):
                loss, accuracy = objective.evaluate(self.model, getattr(self.data, name), self.autocast)
                values |= {f"{name}/loss": loss, f"{name}/accuracy": accuracy}
            values |= objective.objectives(
                values["train/loss"],
                self.regularizer.strength,
                values["norm/weight_l2"],
                values.get("norm/path"),
                self.regularizer.penalty(),
            )
        return _to_floats(values)


def _pairs_if_any(model: nn.Module) -> list[Pair]:
    try:
        return homogeneous_pairs(model)
    except ValueError:  # cannot be seen through: a run without path metrics, not a failed run
        return []


def _to_floats(values: Mapping[str, Tensor]) -> dict[str, float]:
    numbers = torch.stack([v.double() for v in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))
