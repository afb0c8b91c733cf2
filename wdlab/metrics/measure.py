"""The metrics of a log line, of one run or of several side by side, collected with one transfer from the device."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wdlab.data import Data, Split
from wdlab.homogeneous import homogeneous_pairs, if_traceable, normalized_weights, unit_path_norms, weights
from wdlab.metrics import norms, objective, scale_invariant, sparsity
from wdlab.metrics.costly import measure_costly
from wdlab.metrics.equilibrium import ROTATION
from wdlab.metrics.gradients import GradientComparison, MethodOfRuns
from wdlab.regularizers import Regularizer
from wdlab.regularizers.checks import is_sgd_group

SHARPNESS_EXAMPLES = 1000  # training examples in the loss whose Hessian is measured


class _Entry(NamedTuple):
    """One metric of neighbouring runs."""

    name: str
    rows: slice  # the positions of the runs
    value: Tensor  # (rows,), or (1,) if it is the same for all of them


class _Sums(NamedTuple):
    """Lists of L2 norm, L1 norm and number of zeros of every weight, (runs,) each."""

    l2: list[Tensor]
    l1: list[Tensor]
    zeros: list[Tensor]

    def add(self, rows: Sequence[Tensor], stacked: bool, places: Sequence[Tensor] | None = None) -> None:
        """Append the sums of weights; ``places``: memory for a copy of each, None allocates it."""
        self.l2.extend(norms.norms_of_rows(rows, stacked))
        for w, place in zip(rows, places or [None] * len(rows), strict=True):
            l1, zeros = sparsity.l1_norm_and_zeros(w, place)
            self.l1.append(l1)
            self.zeros.append(zeros)


class MetricsOfRuns:
    """The metrics of several models of one shape, each trained with its own regularizer, or of a single model.

    In an update that is logged, ``before_step`` must be called between backward and the update, and ``after_step`` and
    ``measure`` after the update. Other updates need no calls, and cost nothing. The regularizers must be attached to
    their optimizers before the first call.

    Args:
        models: the networks.
        data: the splits on which the models are evaluated.
        regularizers: the method that decays each model's weights.
        autocast: returns the context in which each forward pass runs when whole splits are evaluated.
        sharpness_examples: number of training examples in the loss whose Hessian is measured: the first of the split.
        average: function of the training split and ``autocast`` that returns the network with averaged weights, which
            is then evaluated too; None without averaging. Only for a single model.
        tensor: for several models, a function from a parameter of the first model to the tensor (runs, ...) that holds
            this parameter of all models, whose ``grad`` holds the gradients. None for a single model.
        methods: for several models, the methods that act on them, in the order of the models.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        data: Data,
        regularizers: Sequence[Regularizer],
        autocast: objective.Autocast = contextlib.nullcontext,
        sharpness_examples: int = SHARPNESS_EXAMPLES,
        average: Callable[[Split, objective.Autocast], nn.Module] | None = None,
        tensor: Callable[[Tensor], Tensor] | None = None,
        methods: Sequence[MethodOfRuns] = (),
    ) -> None:
        self._average, self.models, self._regularizers = average, models, regularizers
        self.data, self.autocast, self.sharpness_examples = data, autocast, sharpness_examples
        self._stacked, first = tensor is not None, models[0]
        self._tensor = tensor = tensor or (lambda p: p)
        self._parameters = [tensor(p) for p in first.parameters() if p.requires_grad]
        self.weights = [tensor(w) for w in weights(first)]
        self._methods = methods or [MethodOfRuns(regularizers[0], slice(0, 1), self._parameters)]
        self._pairs = if_traceable(homogeneous_pairs, first)
        normalized = set(map(id, if_traceable(normalized_weights, first)))
        self._normalized = [k for k, w in enumerate(weights(first)) if id(w) in normalized]
        self._all = slice(0, len(models))
        self._of_step: list[_Entry] = []  # the metrics of the update
        self._state: Sequence[Tensor] | None = None  # norms and zeros of the weights after the update, see _Sums
        self._old_parts: list[list[Tensor]] = []  # copies of the weights; reused, since allocation takes longer

    @torch.no_grad()
    def before_step(self) -> None:
        """Measure gradients and weights before the update, while ``p.grad`` is the gradient of the loss alone."""
        parts = self._parts()
        if not self._old_parts:
            self._old_parts = [[torch.empty_like(w) for w in part] for part in parts]
            largest = max(self._parameters, key=Tensor.numel)
            self._scratch = torch.empty_like(largest).flatten() if largest.is_cpu else None
        old_norms = []
        for old, part in zip(self._old_parts, parts, strict=True):
            torch._foreach_copy_(old, part)
            old_norms += norms.norms_of_rows(part, self._stacked)
        self._old_norms = torch.stack(old_norms, dim=1).double()
        live = [p for p in self._parameters if p.grad is not None]
        gradient_norms = norms.each_norm(norms.as_rows([p.grad for p in live], self._stacked, live), self._stacked)
        of_parameter = dict(zip(map(id, live), gradient_norms.unbind(1), strict=True))
        zero = torch.zeros_like(gradient_norms[:, 0])
        of_weights = torch.stack([of_parameter.get(id(w), zero) for w in self.weights], dim=1)
        self._comparisons = [self._comparison(one, of_parameter) for one in self._methods]
        lrs = self._per_run(regularizer.optimizer.param_groups[0]["lr"] for regularizer in self._regularizers)
        values = {
            "gradient/loss_norm": norms.total_norm(gradient_norms),
            "scale_invariant/gradient_times_weight": scale_invariant.gradient_times_weight(of_weights, self._old_norms),
            "scale_invariant/effective_lr": scale_invariant.effective_lr(lrs, norms.total_norm(self._old_norms)),
        }
        if self._normalized:
            power = 2 if is_sgd_group(self._regularizers[0].optimizer.param_groups[0]) else 1
            of_layers, slopes = self._of_normalized(self._old_norms), self._of_normalized(of_weights)
            values["scale_invariant/log_effective_lr"] = scale_invariant.log_effective_lr(lrs, of_layers, power)
            values["gradient/over_weights"] = scale_invariant.root_mean_square(slopes / of_layers)
        self._of_step = self._entries(values)

    def _comparison(self, one: MethodOfRuns, norms_of: Mapping[int, Tensor]) -> GradientComparison:
        """Return the comparison of gradients for one method, given the gradients' norms by the id of the parameter."""
        pairs = zip(one.params, self._parameters, strict=True)
        of_method = {id(own): norms_of[id(p)][one.rows] for own, p in pairs if id(p) in norms_of}
        return GradientComparison(one.method, of_method, self._stacked, self._scratch)

    @torch.no_grad()
    def after_step(self) -> None:
        """Measure the update from the weights before and after it."""
        lengths, products, state = [], [], _Sums([], [], [])
        for old, part in zip(self._old_parts, self._parts(), strict=True):
            torch._foreach_sub_(old, part)  # old - new
            lengths += norms.norms_of_rows(old, self._stacked)
            torch._foreach_mul_(old, part)
            products += [product.sum(1) for product in old]
            state.add(part, self._stacked, old)
        update_norms, products, *self._state = norms.per_tensor(lengths, products, *state)
        products, new_norms = -products - update_norms.square(), self._state[0]
        for one, comparison in zip(self._methods, self._comparisons, strict=True):
            self._of_step += [_Entry(name, one.rows, value) for name, value in comparison.values().items()]
        angles = scale_invariant.angles(self._old_norms, new_norms, update_norms, products)
        values = {
            "update/relative": norms.total_norm(update_norms) / norms.total_norm(self._old_norms),
            "scale_invariant/angular_update": angles.mean(1),
        }
        if self._normalized:
            values[ROTATION] = scale_invariant.root_mean_square(self._of_normalized(angles))
        self._of_step += self._entries(values)

    def _of_normalized(self, of_weights: Tensor) -> Tensor:
        """Return the columns (runs, layers) of the normalized layers, of values (runs, weights)."""
        return torch.stack([of_weights[:, k] for k in self._normalized], dim=1)

    def _entries(self, values: Mapping[str, Tensor]) -> list[_Entry]:
        """Return metrics of all runs, (runs,) each, as entries of the log lines."""
        return [_Entry(name, self._all, value) for name, value in values.items()]

    def measure(
        self,
        whole_splits: bool,
        sharpness: bool = False,
        full_gradient: bool = False,
        evaluated: objective.ResultsBySplit | None = None,
        also: Mapping[str, Tensor] | None = None,
        which: Sequence[int] = (0,),
    ) -> list[dict[str, float]]:
        """Return the metrics of models in their current state, and of an update measured since the last call.

        Args:
            whole_splits: True includes losses, accuracies and objectives on the whole splits.
            sharpness: True includes sharpness and Lipschitz bounds, which need many synchronizations with the device.
            full_gradient: True includes the gradient of the whole training split, which takes as long as an epoch.
            evaluated: losses and accuracies (runs,) of the whole splits; None computes them, for a single model.
            also: further tensors (runs,) by name, read from the device in the same transfer.
            which: the positions of the models to return metrics for.

        Returns:
            For each model of ``which`` a number for every metric and every tensor of ``also``, by name. A metric
            without a value is left out: those of pairs if the network has no pairs, and the upper Lipschitz bound if
            there is none.
        """
        paths, parts = self._paths(), self._parts()
        of_step, state = self._of_step, self._state
        if state is None:
            sums = _Sums([], [], [])
            for part in parts:
                sums.add(part, self._stacked)
            state = norms.per_tensor(*sums)
        self._of_step, self._state = [], None
        l2, l1, zeros = state
        values = {
            "norm/weight_l2": norms.total_norm(l2),
            "norm/weight_l1": l1.sum(1),
            "sparsity/weights": sparsity.share_of_zeros(l1, zeros, sum(w.shape[1] for part in parts for w in part)),
        }
        if paths:
            values["norm/path"] = norms.path_norm(paths)
            values["sparsity/active_units"] = sparsity.active_unit_share(paths)
        if whole_splits:
            if evaluated is None:
                evaluated = objective.evaluate_splits(self.models[0], self.data, self.autocast)
            values |= self._evaluations(evaluated)
        objectives = self._objectives(values) if whole_splits else []
        lines = self._lines([*of_step, *self._entries(values), *objectives, *self._entries(also or {})])
        models = [self.models[k] for k in which]
        costly = measure_costly(models, self.data, self.sharpness_examples, sharpness, full_gradient)
        return [lines[k] | numbers for k, numbers in zip(which, costly, strict=True)]

    def _parts(self) -> list[list[Tensor]]:
        """Return the weights as rows, in lists to be processed together: one weight per list on the CPU, else all.

        A single weight stays in the CPU's caches from one operation to the next. On a GPU one launch processes all.
        """
        rows = norms.as_rows(self.weights, self._stacked)
        return [[w] for w in rows] if rows[0].is_cpu else [rows]

    def _lines(self, entries: Sequence[_Entry]) -> list[dict[str, float]]:
        """Return the numbers of each run by name, in one transfer from the device."""
        values = [entry.value.double().expand(entry.rows.stop - entry.rows.start) for entry in entries]
        numbers = iter(torch.cat(values).tolist())
        lines: list[dict[str, float]] = [{} for _ in self.models]
        for entry in entries:
            for line in lines[entry.rows]:
                line[entry.name] = next(numbers)
        return lines

    def _paths(self) -> list[Tensor]:
        """Return ``|w| |v|`` of the homogeneous units, one tensor (runs, units) per pair of layers."""
        paths = unit_path_norms(self._pairs, self._tensor, self._stacked)
        return paths if self._stacked else [path.unsqueeze(0) for path in paths]

    def _evaluations(self, evaluated: objective.ResultsBySplit) -> dict[str, Tensor]:
        results = dict(evaluated)
        if self._average:
            averaged = objective.evaluate_splits(
                self._average(self.data.train, self.autocast), self.data, self.autocast
            )
            results |= {f"average/{name}": result for name, result in averaged.items()}
        values = {}
        for name, (loss, accuracy) in results.items():
            values |= {f"{name}/loss": loss.reshape(-1), f"{name}/accuracy": accuracy.reshape(-1)}
        return values

    def _objectives(self, values: Mapping[str, Tensor]) -> list[_Entry]:
        """Return the objectives of those runs whose method has one (``Regularizer.has_objective``)."""
        entries = []
        for rows in [one.rows for one in self._methods if one.method.has_objective]:
            regularizers, path = self._regularizers[rows], values.get("norm/path")
            strengths = self._per_run(regularizer.strength for regularizer in regularizers)
            penalties = torch.stack([regularizer.penalty() for regularizer in regularizers])
            terms = values["train/loss"][rows], strengths, values["norm/weight_l2"][rows]
            of_rows = objective.objectives(*terms, None if path is None else path[rows], penalties)
            entries += [_Entry(name, rows, value) for name, value in of_rows.items()]
        return entries

    def _per_run(self, numbers: Iterable[Any]) -> Tensor:
        """Return a number of each run as a float64 tensor (runs,) on the device of the weights."""
        numbers, device = list(numbers), self.weights[0].device
        if any(isinstance(number, Tensor) for number in numbers):
            return torch.stack([torch.as_tensor(n, dtype=torch.float64, device=device).reshape(()) for n in numbers])
        return torch.tensor(numbers, dtype=torch.float64).to(device, non_blocking=True)


class Metrics(MetricsOfRuns):
    """The metrics of one model that is trained with one regularizer, see :class:`MetricsOfRuns`.

    Args:
        model: the network.
        data: the splits on which the model is evaluated.
        regularizer: the method that decays the model's weights.
        options: further keyword arguments of ``MetricsOfRuns``: ``autocast``, ``sharpness_examples``, ``average``.
    """

    def __init__(self, model: nn.Module, data: Data, regularizer: Regularizer, **options: Any) -> None:
        super().__init__([model], data, [regularizer], **options)

    def measure(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the metrics of the model, with the arguments of ``MetricsOfRuns.measure``."""
        (line,) = super().measure(*args, **kwargs)
        return line
