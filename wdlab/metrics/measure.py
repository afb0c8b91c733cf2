"""Gathers the metrics that are due at a log point, with one transfer from the device."""

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wdlab.data import Data
from wdlab.homogeneous import Pair, homogeneous_pairs, unit_paths, weights
from wdlab.metrics import lipschitz, norms, objective, scale_invariant, sharpness, sparsity
from wdlab.metrics.gradients import PenaltyGradient
from wdlab.regularizers import Regularizer

SHARPNESS_EXAMPLES = 1000
LIPSCHITZ_EXAMPLES = 32


class Metrics:
    """Measures one model under one regularizer.

    The loop calls ``before_step`` between backward and step, ``after_step`` and ``measure`` behind the step; only at
    steps that are logged, so other steps cost nothing. The regularizer is attached while it does.

    Args:
        model, data, regularizer: of the run.
        autocast: gives the context of a forward pass when whole splits are evaluated.
        sharpness_examples: how many of the first training examples the Hessian is of.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        regularizer: Regularizer,
        autocast: objective.Autocast = contextlib.nullcontext,
        sharpness_examples: int = SHARPNESS_EXAMPLES,
    ) -> None:
        self.model, self.data, self.regularizer = model, data, regularizer
        self.autocast, self.sharpness_examples = autocast, sharpness_examples
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.weights = weights(model)
        self.pairs = _pairs_if_any(model)
        self._step_values: dict[str, Tensor] = {}
        self._old_weights: list[Tensor] = []  # the same memory each time: to get it takes longer than to copy

    @torch.no_grad()
    def before_step(self) -> None:
        """The gradient is that of the loss alone, the weights are still old."""
        if not self._old_weights:
            self._old_weights = [torch.empty_like(w) for w in self.weights]
        torch._foreach_copy_(self._old_weights, self.weights)
        self._old_norms = norms.each_norm(self.weights)
        with_gradient = [p for p in self.parameters if p.grad is not None]
        gradient_norms = norms.each_norm([p.grad for p in with_gradient])
        by_parameter = dict(zip(map(id, with_gradient), gradient_norms.unbind(), strict=True))
        self._penalty = PenaltyGradient(self.regularizer, by_parameter)
        zero = torch.zeros_like(gradient_norms[0])
        of_weights = torch.stack([by_parameter.get(id(w), zero) for w in self.weights])
        lr = self.regularizer.optimizer.param_groups[0]["lr"]
        self._step_values = {
            "gradient/loss_norm": norms.together(gradient_norms),
            "scale_invariant/gradient_times_weight": scale_invariant.gradient_times_weight(of_weights, self._old_norms),
            "scale_invariant/effective_lr": scale_invariant.effective_lr(lr, norms.together(self._old_norms)),
        }

    @torch.no_grad()
    def after_step(self) -> None:
        """The weights are new."""
        torch._foreach_sub_(self._old_weights, self.weights)
        backwards = self._old_weights  # old - new: what is left of them
        new_norms, update_norms = norms.each_norm(self.weights), norms.each_norm(backwards)
        products = -norms.each_dot(backwards, self.weights) - update_norms.square()
        self._step_values |= self._penalty.values()
        self._step_values |= {
            "update/relative": norms.together(update_norms) / norms.together(self._old_norms),
            "scale_invariant/angular_update": scale_invariant.angular_update(
                self._old_norms, new_norms, update_norms, products
            ),
            "norm/weight_l2": norms.together(new_norms),
        }

    def measure(self, whole_splits: bool, sharpness: bool = False) -> dict[str, float]:
        """The metrics of the model as it is, those of the last step included.

        Args:
            whole_splits: with the evaluations.
            sharpness: with the Hessian and the Lipschitz bounds, which wait for the device many times.

        Returns:
            A number for every metric. One that has no value here (no pairs, no bound known) is left out.
        """
        paths = unit_paths(self.pairs)
        values = self._step_values
        self._step_values = {}
        if "norm/weight_l2" not in values:
            values["norm/weight_l2"] = norms.weight_norm(self.weights)
        values["norm/weight_l1"] = norms.weight_norm(self.weights, 1)
        values["sparsity/weights"] = sparsity.zero_weights(self.weights, values["norm/weight_l1"])
        if paths:
            values["norm/path"] = norms.path_norm(paths)
            values["sparsity/active_units"] = sparsity.active_units(paths)
        if whole_splits:
            values |= self._evaluations(values["norm/weight_l2"], values.get("norm/path"))
        return _to_floats(values) | (self._sharpness() if sharpness else {})

    def _evaluations(self, weight_l2: Tensor, path: Tensor | None) -> dict[str, Tensor]:
        values = {}
        for name in ("train", "val", "test"):
            loss, accuracy = objective.evaluate(self.model, getattr(self.data, name), self.autocast)
            values |= {f"{name}/loss": loss, f"{name}/accuracy": accuracy}
        strength, penalty = self.regularizer.strength, self.regularizer.penalty()
        return values | objective.objectives(values["train/loss"], strength, weight_l2, path, penalty)

    def _sharpness(self) -> dict[str, float]:
        inputs, labels = self.data.train.examples(slice(0, self.sharpness_examples))
        trained = [w for w in self.weights if w.requires_grad]
        values = sharpness.measure(self.model, inputs, labels, self.parameters, trained)
        images, _ = self.data.test.examples(slice(0, LIPSCHITZ_EXAMPLES))
        if images.is_floating_point():
            values["lipschitz/lower"] = lipschitz.lower_bound(self.model, images)
            upper = lipschitz.upper_bound(self.model, images[:1])
            if upper is not None:
                values["lipschitz/upper"] = upper
        return values


def _pairs_if_any(model: nn.Module) -> list[Pair]:
    try:
        return homogeneous_pairs(model)
    except ValueError:  # cannot be seen through: a run without path metrics, not a failed run
        return []


def _to_floats(values: Mapping[str, Tensor]) -> dict[str, float]:
    numbers = torch.stack([v.double() for v in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))
