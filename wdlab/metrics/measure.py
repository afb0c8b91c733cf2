"""The metrics of a log line, collected with one transfer from the device."""

import contextlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from wdlab.data import Data, Split
from wdlab.homogeneous import Pair, homogeneous_pairs, unit_path_norms, weights
from wdlab.metrics import lipschitz, norms, objective, scale_invariant, sharpness, sparsity
from wdlab.metrics.gradients import GradientComparison
from wdlab.regularizers import Regularizer

SHARPNESS_EXAMPLES = 1000  # training examples in the loss whose Hessian is measured
LIPSCHITZ_EXAMPLES = 32  # test examples for the lower bound


class Metrics:
    """The metrics of one model that is trained with one regularizer.

    In an update that is logged, ``before_step`` must be called between backward and the update, and ``after_step`` and
    ``measure`` after the update. Other updates need no calls, and cost nothing. The regularizer must be attached to its
    optimizer before the first call.

    Args:
        model: the network.
        data: the splits on which the model is evaluated.
        regularizer: the method that decays the model's weights.
        autocast: returns the context in which each forward pass runs when whole splits are evaluated.
        sharpness_examples: number of training examples in the loss whose Hessian is measured: the first of the split.
        average: function of the training split and ``autocast`` that returns the network with averaged weights, which
            is then evaluated too; None without averaging.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        regularizer: Regularizer,
        autocast: objective.Autocast = contextlib.nullcontext,
        sharpness_examples: int = SHARPNESS_EXAMPLES,
        average: Callable[[Split, objective.Autocast], nn.Module] | None = None,
    ) -> None:
        self._average = average
        self.model, self.data, self.regularizer = model, data, regularizer
        self.autocast, self.sharpness_examples = autocast, sharpness_examples
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.weights = weights(model)
        self.pairs = _pairs_if_any(model)
        self._lists = _lists(self.weights)
        self._step_values: dict[str, Tensor] = {}
        self._state: list[Tensor] | None = None  # the result of _sums after the update
        self._old_lists: list[list[Tensor]] = []  # copies of the weights; reused, since allocation takes longer

    @torch.no_grad()
    def before_step(self) -> None:
        """Measure gradients and weights before the update, while ``p.grad`` is the gradient of the loss alone."""
        if not self._old_lists:
            self._old_lists = [[torch.empty_like(w) for w in part] for part in self._lists]
        old_norms = []
        for old, part in zip(self._old_lists, self._lists, strict=True):
            torch._foreach_copy_(old, part)
            old_norms.append(norms.each_norm(part))
        self._old_norms = torch.cat(old_norms)
        with_gradient = [p for p in self.parameters if p.grad is not None]
        gradient_norms = norms.each_norm([p.grad for p in with_gradient])
        by_parameter = dict(zip(map(id, with_gradient), gradient_norms.unbind(), strict=True))
        self._penalty = GradientComparison(self.regularizer, by_parameter)
        zero = torch.zeros_like(gradient_norms[0])
        of_weights = torch.stack([by_parameter.get(id(w), zero) for w in self.weights])
        lr = self.regularizer.optimizer.param_groups[0]["lr"]
        self._step_values = {
            "gradient/loss_norm": norms.total_norm(gradient_norms),
            "scale_invariant/gradient_times_weight": scale_invariant.gradient_times_weight(of_weights, self._old_norms),
            "scale_invariant/effective_lr": scale_invariant.effective_lr(lr, norms.total_norm(self._old_norms)),
        }

    @torch.no_grad()
    def after_step(self) -> None:
        """Measure the update from the weights before and after it."""
        sums = []
        for old, part in zip(self._old_lists, self._lists, strict=True):
            torch._foreach_sub_(old, part)  # old - new
            updates = norms.each_norm(old), norms.each_dot(old, part)
            sums.append(torch.stack([*updates, *_sums(part)]))
        update_norms, products, *state = torch.cat(sums, dim=1)
        products = -products - update_norms.square()
        self._state, new_norms = state, state[0]
        self._step_values |= self._penalty.values()
        self._step_values |= {
            "update/relative": norms.total_norm(update_norms) / norms.total_norm(self._old_norms),
            "scale_invariant/angular_update": scale_invariant.angular_update(
                self._old_norms, new_norms, update_norms, products
            ),
        }

    def measure(
        self,
        whole_splits: bool,
        sharpness: bool = False,
        evaluated: objective.ResultsBySplit | None = None,
        also: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        """Return the metrics of the model's current state, and of the update if it was measured since the last call.

        Args:
            whole_splits: True includes losses, accuracies and objectives on the whole splits.
            sharpness: True includes sharpness and Lipschitz bounds, which need many synchronizations with the device.
            evaluated: losses and accuracies of the whole splits if they were computed before; None computes them.
            also: further 0-dim tensors by name, read from the device in the same transfer.

        Returns:
            A number for every metric and every tensor of ``also``, by name. A metric without a value is left out: those
            of pairs if the network has no pairs, and the upper Lipschitz bound if there is none.
        """
        paths = unit_path_norms(self.pairs)
        values, state = self._step_values, self._state or _sums(self.weights)
        self._step_values, self._state = {}, None
        l2, l1, zeros = state
        values |= {
            "norm/weight_l2": norms.total_norm(l2),
            "norm/weight_l1": l1.sum(),
            "sparsity/weights": zeros.sum() / sum(w.numel() for w in self.weights),
        }
        if paths:
            values["norm/path"] = norms.path_norm(paths)
            values["sparsity/active_units"] = sparsity.active_unit_share(paths)
        if whole_splits:
            evaluated = evaluated or objective.evaluate_splits(self.model, self.data, self.autocast)
            values |= self._evaluations(evaluated, values["norm/weight_l2"], values.get("norm/path"))
        return _to_floats(values | dict(also or {})) | (self._sharpness() if sharpness else {})

    def _evaluations(
        self, evaluated: objective.ResultsBySplit, weight_l2: Tensor, path: Tensor | None
    ) -> dict[str, Tensor]:
        values = {}
        for name, (loss, accuracy) in evaluated.items():
            values |= {f"{name}/loss": loss, f"{name}/accuracy": accuracy}
        if self._average:
            averaged = self._average(self.data.train, self.autocast)
            for name, (loss, accuracy) in objective.evaluate_splits(averaged, self.data, self.autocast).items():
                values |= {f"average/{name}/loss": loss, f"average/{name}/accuracy": accuracy}
        strength, penalty = self.regularizer.strength, self.regularizer.penalty()
        return values | objective.objectives(values["train/loss"], strength, weight_l2, path, penalty)

    def _sharpness(self) -> dict[str, float]:
        inputs, labels = self.data.train.examples(slice(0, self.sharpness_examples))
        trained = [w for w in self.weights if w.requires_grad]
        values = sharpness.measure_sharpness(self.model, inputs, labels, self.parameters, trained)
        images, _ = self.data.test.examples(slice(0, LIPSCHITZ_EXAMPLES))
        if images.is_floating_point():
            values["lipschitz/lower"] = lipschitz.lower_bound(self.model, images)
            upper = lipschitz.upper_bound(self.model, images[:1])
            if upper is not None:
                values["lipschitz/upper"] = upper
        return values


def _lists(weights: list[Tensor]) -> list[list[Tensor]]:
    """Return lists of weights to be processed together: one weight per list on the CPU, else all in one list.

    A single weight stays in the CPU's caches from one operation to the next. On a GPU one launch processes all weights.
    """
    return [[w] for w in weights] if weights[0].device.type == "cpu" else [weights]


def _sums(weights: list[Tensor]) -> list[Tensor]:
    """Return three tensors (len(weights),): the L2 norm, the L1 norm and the number of zeros of every weight."""
    return [norms.each_norm(weights), *sparsity.l1_norms_and_zeros(weights)]


def _pairs_if_any(model: nn.Module) -> list[Pair]:
    try:
        return homogeneous_pairs(model)
    except ValueError:  # the forward cannot be traced: the run has no path metrics, but does not fail
        return []


def _to_floats(values: Mapping[str, Tensor]) -> dict[str, float]:
    numbers = torch.stack([v.double() for v in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))
