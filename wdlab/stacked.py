"""Runs of one MLP that differ in numbers only, trained side by side as one batched program. Called by ``launchers``.

A stack is a list of ordinary experiments whose tensors lie next to each other in memory: what a run is measured,
recorded and saved by reads its own rows, and never knows. The networks go forward and backward by batched matrix
products; the methods' own arithmetic acts on all runs at once, with a strength and a learning rate for each.
"""

import contextlib
import copy
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wdlab import regularizers
from wdlab.data import Data, Split, StackedBatches
from wdlab.foreach import add_, times_
from wdlab.loop import FULLER, Experiment, Keeper, due
from wdlab.metrics import SPLITS, Evaluated
from wdlab.models import MLP, FactorizedMLP
from wdlab.optimizers import SGDS, PAdam
from wdlab.progress import Progress
from wdlab.recorder import Recorder
from wdlab.regularizers import Regularizer
from wdlab.regularizers.base import Part
from wdlab.regularizers.checks import is_sgd
from wdlab.regularizers.hooks import go_before_the_step, go_behind_the_step
from wdlab.regularizers.in_loss import InLoss
from wdlab.regularizers.pathprox import prox_step_
from wdlab.runs import RunDirectory

ALIGNMENT = 16  # elements: 64 bytes of float32
CHUNK_VALUES = 2**22  # numbers of one layer when whole splits are evaluated
NETWORKS = (MLP, FactorizedMLP)
OPTIMIZERS = (torch.optim.SGD, SGDS, torch.optim.Adam, torch.optim.AdamW, PAdam)
METHODS = (
    *(Regularizer, regularizers.L2, regularizers.L1, regularizers.Lp, regularizers.DecoupledDecay),
    *(regularizers.ScheduledDecay, regularizers.PNormDecay, regularizers.PNormProx, regularizers.PathProx),
)
ROUTES = ("both", "decoupled")
BY_THE_CLOCK = (regularizers.Early, regularizers.Delayed, regularizers.WarmUp)


@dataclass
class Member:
    """One run of a stack.

    Args:
        experiment: as for a run by itself. Its optimizer takes no steps; it holds the state and the learning rate.
        run: its directory.
        recorder: of its records.
        start: the checkpoint it goes on from, None at the beginning.
    """

    experiment: Experiment
    run: RunDirectory
    recorder: Recorder
    start: dict[str, Any] | None = None
    outcome: str | None = None  # as ``loop.fit`` says it, once it is known


def why_not(config: Mapping[str, Any], experiment: Experiment) -> str | None:
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


class Network:
    """The linear layers of a stack of MLPs: each layer's weights next to each other, run after run, then its biases.

    The models' parameters become views of their runs, and so do their gradients. A run's weights begin where torch
    would put them, so that its numbers do not depend on how many others are in its stack.

    Args:
        models: of one shape, on one device.

    Attributes:
        runs: how many.
        weights, biases: per layer, (runs, out, in) and (runs, 1, out).
        weight_gradients, bias_gradients: the same of the gradients.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        layers = [linear_layers(model) for model in models]
        shapes = [layer.weight.shape for layer in layers[0]]
        self.runs = len(models)
        like = layers[0][0].weight
        self.weights, self.weight_gradients = (_blocks(self.runs, shapes, like) for _ in range(2))
        biases = [(1, out) for out, _ in shapes]
        self.biases, self.bias_gradients = (_blocks(self.runs, biases, like) for _ in range(2))
        modules = list(models[0].layers)
        behind = [k + 1 for k, module in enumerate(modules) if isinstance(module, nn.Linear)]
        self._relu_behind = [k < len(modules) and isinstance(modules[k], nn.ReLU) for k in behind]
        with torch.no_grad():
            for run, model in enumerate(models):
                places, gradients = self.of_run(self.parameters, run), self.of_run(self.gradients, run)
                for p, place, gradient in zip(model.parameters(), places, gradients, strict=True):
                    place.copy_(p)
                    p.data, p.grad = place, gradient

    @property
    def parameters(self) -> list[Tensor]:
        """All weights, then all biases."""
        return [*self.weights, *self.biases]

    @property
    def gradients(self) -> list[Tensor]:
        """In the order of ``parameters``."""
        return [*self.weight_gradients, *self.bias_gradients]

    def of_run(self, tensors: Sequence[Tensor], run: int) -> list[Tensor]:
        """Views of one run's part of tensors like ``parameters``, in the order and shapes of its model's parameters."""
        pairs = zip(tensors[: len(self.weights)], tensors[len(self.weights) :], strict=True)
        return [t for weight, bias in pairs for t in (weight[run], bias[run, 0])]

    @torch.no_grad()
    def backward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Put the gradient of each run's mean cross-entropy (nats) into ``gradient``; returns these losses, (runs,).

        Args:
            inputs: (runs, batch, ...).
            labels: int64, (runs, batch).
        """
        *read, logits = self._forward(inputs.flatten(2))
        logs, labels = torch.log_softmax(logits, 1), labels.unsqueeze(1)
        losses = -logs.gather(1, labels).mean((1, 2))
        slopes = logs.exp_().scatter_add_(1, labels, labels.new_full((), -1).to(logs.dtype).expand_as(labels))
        slopes = slopes.div_(labels.shape[2]).transpose(1, 2)
        for k in reversed(range(len(self.weights))):
            _product(slopes.transpose(1, 2), read[k], self.weight_gradients[k])
            torch.sum(slopes, 1, keepdim=True, out=self.bias_gradients[k])
            if k:
                slopes = torch.bmm(slopes, self.weights[k])
                if self._relu_behind[k - 1]:
                    slopes = torch.ops.aten.threshold_backward(slopes, read[k], 0)
        return losses

    def _forward(self, values: Tensor) -> list[Tensor]:
        """What every layer reads, (runs, examples, in), and at the end the logits, (runs, classes, examples).

        That is the layout in which torch has a fast softmax over few classes.
        """
        read = [values]
        *hidden, last = zip(self.weights, self.biases, self._relu_behind, strict=True)
        for weight, bias, relu in hidden:
            values = torch.bmm(read[-1], weight.transpose(1, 2)).add_(bias)
            read.append(values.relu_() if relu else values)
        weight, bias, _ = last
        return [*read, torch.bmm(weight, read[-1].transpose(1, 2)).add_(bias.transpose(1, 2))]

    @torch.no_grad()
    def evaluate(self, data: Data) -> list[Evaluated]:
        """Of each run, loss and accuracy on the three splits, as ``wdlab.metrics.evaluate`` gives them."""
        found = {name: self._evaluate(getattr(data, name)) for name in SPLITS}
        return [{name: (loss[run], share[run]) for name, (loss, share) in found.items()} for run in range(self.runs)]

    def _evaluate(self, split: Split) -> tuple[Tensor, Tensor]:
        widest = max(max(weight.shape[1:]) for weight in self.weights)
        size = max(1, CHUNK_VALUES // (self.runs * widest))
        losses, hits = [], []
        for start in range(0, len(split), size):
            inputs, labels = split.examples(slice(start, start + size))
            *_, logits = self._forward(inputs.flatten(1).expand(self.runs, -1, -1))
            logs = torch.log_softmax(logits.double(), 1)
            losses.append(-logs.gather(1, labels.expand(self.runs, 1, -1)).sum((1, 2)))
            hits.append((logits.argmax(1) == labels).sum(1))
        return torch.stack(losses).sum(0) / len(split), torch.stack(hits).sum(0).double() / len(split)

    @torch.no_grad()
    def clip(self, norm: float) -> None:
        """Scale every run's gradient down to ``norm`` if it is longer, as ``nn.utils.clip_grad_norm_`` does."""
        lengths = torch.stack([torch.linalg.vector_norm(g, dim=(1, 2), keepdim=True) for g in self.gradients])
        lengths = torch.linalg.vector_norm(lengths, dim=0)
        times_(self.gradients, (norm / (lengths + 1e-6)).clamp_(max=1.0))


def _product(a: Tensor, b: Tensor, place: Tensor) -> None:
    """Batched ``place = a @ b``."""
    if place.is_contiguous():
        torch.bmm(a, b, out=place)
    else:
        place.copy_(torch.bmm(a, b))


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """Those of an MLP, in forward order."""
    return [module for module in model.layers if isinstance(module, nn.Linear)]


def _blocks(runs: int, shapes: Sequence[tuple[int, int]], like: Tensor) -> list[Tensor]:
    """Zeros, (runs, *shape) for each shape."""
    blocks = []
    for shape in shapes:
        count = math.prod(shape)
        rows = torch.zeros(runs, _aligned(count), device=like.device, dtype=like.dtype)
        blocks.append(rows[:, :count].unflatten(1, tuple(shape)))
    return blocks


def _aligned(count: int) -> int:
    """So many elements that what follows begins where torch would put it: sums depend on it in their last bits."""
    return -(-count // ALIGNMENT) * ALIGNMENT


# -- the optimizers' steps, with a learning rate for each run


class SGDStep:
    """``torch.optim.SGD``, on the parameters of a stack.

    Args:
        network: of the stack.
        group: the optimizer's settings.
        begun: whether the runs have taken steps before.

    Attributes:
        state: the optimizer's moments, each like ``network.parameters``.
    """

    def __init__(self, network: Network, group: Mapping[str, Any], begun: bool) -> None:
        self._params, self._gradients, self._begun = network.parameters, network.gradients, begun
        self._momentum, self._dampening, self._nesterov = group["momentum"], group["dampening"], group["nesterov"]
        self.state = {"momentum_buffer": [torch.zeros_like(p) for p in self._params]} if self._momentum else {}

    def __call__(self, lr: Tensor, step: int) -> None:
        """Update ``step + 1``; ``lr`` (runs, 1, 1)."""
        directions = self._gradients
        if self._momentum:
            means = self.state["momentum_buffer"]
            if self._begun:
                torch._foreach_mul_(means, self._momentum)
                torch._foreach_add_(means, directions, alpha=1 - self._dampening)
            else:
                torch._foreach_copy_(means, directions)
            directions = torch._foreach_add(directions, means, alpha=self._momentum) if self._nesterov else means
        for p, direction in zip(self._params, directions, strict=True):
            p.addcmul_(direction, lr, value=-1)
        self._begun = True

    def scalars(self, step: int) -> dict[str, Tensor]:
        """What torch keeps beside, per parameter, behind ``step`` updates."""
        return {}


class AdamStep:
    """``torch.optim.Adam`` and ``AdamW``, on the parameters of a stack. As ``SGDStep``."""

    def __init__(self, network: Network, group: Mapping[str, Any], begun: bool) -> None:
        self._params, self._gradients = network.parameters, network.gradients
        (self._beta1, self._beta2), self._eps = group["betas"], group["eps"]
        self._decay = group["weight_decay"] if group.get("decoupled_weight_decay") else 0.0
        self.state = {name: [torch.zeros_like(p) for p in self._params] for name in ("exp_avg", "exp_avg_sq")}

    def __call__(self, lr: Tensor, step: int) -> None:
        """Update ``step + 1``; ``lr`` (runs, 1, 1)."""
        if self._decay:
            times_(self._params, 1 - lr * self._decay)
        means, squares = self.state["exp_avg"], self.state["exp_avg_sq"]
        torch._foreach_lerp_(means, self._gradients, 1 - self._beta1)
        torch._foreach_mul_(squares, self._beta2)
        torch._foreach_addcmul_(squares, self._gradients, self._gradients, value=1 - self._beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, math.sqrt(1 - self._beta2 ** (step + 1)))
        torch._foreach_add_(roots, self._eps)
        for p, mean, root in zip(self._params, means, roots, strict=True):
            p.addcmul_(torch.div(mean, root, out=root), lr, value=-1 / (1 - self._beta1 ** (step + 1)))

    def scalars(self, step: int) -> dict[str, Tensor]:
        """What torch keeps beside, per parameter, behind ``step`` updates."""
        return {"step": torch.tensor(float(step))}


# -- the methods, with a strength for each run


class Rows:
    """One method on some rows of a stack.

    Args:
        method: that of one of these runs. It is taken over: what it acts on are the rows from now on.
        optimizer: that of the same run.
        model: of the same run.
        network: of the stack.
        rows: which.
        strengths: of these runs, (rows,).

    Attributes:
        lr: learning rates of the next step, (rows, 1, 1).
    """

    def __init__(
        self,
        method: Regularizer,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        network: Network,
        rows: slice,
        strengths: Tensor,
    ) -> None:
        self.method, self._group = method, optimizer.param_groups[0]
        self.place, self._strengths, self.lr = rows, _column(strengths), _column(strengths)
        method._optimizer = optimizer
        method.parts = self._parts
        if hasattr(method, "compiled"):
            method.compiled = False
        if isinstance(method, regularizers.PathProx):
            self._on_pairs(model, network)
        else:
            tensors = list(zip(network.parameters, network.gradients, strict=True))
            self._params = [_with_gradient(p[rows], g[rows]) for p, g in tensors[: _decayed(method, network)]]

    @property
    def _factor(self) -> float:
        return math.prod(schedule.factor(self.method.updates, self._group) for schedule in self.method.over_time)

    def _parts(self) -> list[Part]:
        factor = self._factor
        if factor == 0 or not self._params:
            return []
        return [Part(self._params, self._strengths * factor, self.lr, False, self.method.groups[0])]

    # -- PathProx, whose rows are matrices

    def _on_pairs(self, model: nn.Module, network: Network) -> None:
        method, layers = self.method, linear_layers(model)
        places = {id(layer): k for k, layer in enumerate(layers)}
        paired = [[places[id(layer)] for layer in pair] for pair in method.pairs]
        others = set(places.values()) - {k for pair in paired for k in pair}
        self._pairs = [
            tuple(t for k in pair for t in (network.weights[k][self.place], network.biases[k][self.place, 0]))
            for pair in paired
        ]
        self._params = [
            _with_gradient(network.weights[k][self.place], network.weight_gradients[k][self.place])
            for k in sorted(others)
        ]
        method.after_backward, method.after_step = self._pull_others, self._prox

    def _pull_others(self) -> None:
        for part in self._parts():
            add_([w.grad for w in part.params], part.params, part.strength)

    def _prox(self) -> None:
        if factor := self._factor:
            thresholds = (self.lr * self._strengths * factor).flatten()
            torch.vmap(self._prox_of_one_run, in_dims=(0, 0))(self._pairs, thresholds)

    def _prox_of_one_run(self, pairs: list[tuple[Tensor, ...]], threshold: Tensor) -> Tensor:
        prox_step_(pairs, [threshold] * len(pairs), self.method.balance, self.method.regularize_bias)
        return threshold


def _column(numbers: Tensor) -> Tensor:
    """A number for each run, (runs, 1, 1): what broadcasts over a layer."""
    return numbers[:, None, None]


def _with_gradient(p: Tensor, gradient: Tensor) -> Tensor:
    p.grad = gradient
    return p


def _decayed(method: Regularizer, network: Network) -> int:
    """How many of ``network.parameters`` a method acts on: the weights, or everything."""
    return len(network.weights) * (2 if len(method.params) > len(network.weights) else 1)


# -- the loop


class Stack:
    """Members in one program.

    Args:
        members: runs of one network on one data set, at the same step, those of one method next to each other.
        kinds: per member what tells its method from others; equal for those that differ in strength only.
        step: at which they are.
    """

    def __init__(self, members: Sequence[Member], kinds: Sequence[str], step: int) -> None:
        self.experiments = [member.experiment for member in members]
        self._base_lrs = [experiment.optimizer.param_groups[0]["lr"] for experiment in self.experiments]
        for member in members:
            if member.start is not None:
                for part in ("model", "optimizer", "regularizer"):
                    getattr(member.experiment, part).load_state_dict(member.start[part])
        self.network = Network([experiment.model for experiment in self.experiments])
        group = self.experiments[0].optimizer.param_groups[0]
        kind = SGDStep if is_sgd(group) else AdamStep
        self._step = kind(self.network, group, step > 0)
        self._take_over_moments()
        self._lrs = _column(self._numbers(self._base_lrs))
        first, self._rows = 0, []
        for _, same in itertools.groupby(kinds):
            last = first + len(list(same))
            self._rows += self._methods(first, last)
            first = last
        for rows in self._rows:
            rows.method.updates = step

    def update(self, step: int, factor: float) -> None:
        """Everything of update ``step + 1`` that comes behind the gradients; ``factor`` is on the learning rates."""
        lr = self._lrs * factor
        for rows in self._rows:
            rows.lr = lr[rows.place]
            go_before_the_step([rows.method])
        self._step(lr, step)
        for rows in reversed(self._rows):  # an optimizer's own decay is inside of its step
            go_behind_the_step([rows.method])

    def tell(self, steps: int, factor: float) -> None:
        """Tell the runs what they cannot see in their rows: how many updates there were, and the learning rate."""
        for experiment, lr in zip(self.experiments, self._base_lrs, strict=True):
            experiment.optimizer.param_groups[0]["lr"] = lr * factor
            experiment.regularizer.updates = steps
            for p in experiment.model.parameters() if self._step.state else ():
                experiment.optimizer.state[p].update(self._step.scalars(steps))

    def _take_over_moments(self) -> None:
        """Make the optimizers' moments views of the stack's, with the values that they have."""
        for name, moments in self._step.state.items():
            for run, experiment in enumerate(self.experiments):
                places = self.network.of_run(moments, run)
                for p, place in zip(experiment.model.parameters(), places, strict=True):
                    state = experiment.optimizer.state[p]
                    if name in state:
                        place.copy_(state[name])
                    state[name] = place

    def _methods(self, first: int, last: int) -> list[Rows]:
        """The regularizer of some rows, and the decay that their optimizer brings along."""
        one, here = self.experiments[first], self.experiments[first:last]
        decays = [(copy.copy(one.regularizer), [experiment.regularizer.strength for experiment in here])]
        group = one.optimizer.param_groups[0]
        own = [experiment.optimizer.param_groups[0]["weight_decay"] for experiment in here]
        if isinstance(one.optimizer, PAdam):
            matrices = [p for p in one.model.parameters() if p.dim() >= 2]
            decays.append((regularizers.PNormDecay(matrices, 0.0, group["p"]), own))
        if isinstance(one.optimizer, SGDS):
            decays.append((regularizers.ScheduledDecay(one.model.parameters(), 0.0), own))
        return [
            Rows(method, one.optimizer, one.model, self.network, slice(first, last), self._numbers(strengths))
            for method, strengths in decays
            if any(strengths)
        ]

    def _numbers(self, values: Sequence[float]) -> Tensor:
        like = self.network.weights[0]
        return torch.tensor(values, device=like.device, dtype=like.dtype)


def fit(
    members: Sequence[Member],
    kinds: Sequence[str],
    config: Mapping[str, Any],
    checkpoint_seconds: float,
    stop_requested: Callable[[], bool] = lambda: False,
) -> None:
    """Train a stack to ``config["steps"]`` updates, as ``loop.fit`` would each of its runs; their ``outcome`` says how.

    A run that diverges is left behind, the others go on.
    """
    stack = Stack(members, kinds, step_of(members[0]))
    experiments = stack.experiments
    batches = StackedBatches(experiments[0].data.train, config["batch_size"], [e.seed for e in experiments])
    first, steps, per_epoch = step_of(members[0]), config["steps"], batches.steps_per_epoch
    finite = torch.tensor([member.start is None or member.start["finite"] for member in members])
    finite = finite.to(stack.network.weights[0].device)
    with contextlib.ExitStack() as exits:
        keepers = []
        for member in members:
            member.experiment.regularizer.set_steps_per_epoch(per_epoch)
            keepers.append(Keeper(member.experiment, config, member.run, member.recorder, per_epoch))
        progress = exits.enter_context(Progress(f"{len(members)} runs in one stack", steps, first))

        def still_training() -> list[int]:
            return [k for k, member in enumerate(members) if member.outcome is None]

        def factor_of(step: int) -> float:
            return experiments[0].lr_factor(step, steps, per_epoch)

        def evaluate(step: int) -> Sequence[Evaluated | None]:
            whole_splits = due(config, "eval_every", step)
            return stack.network.evaluate(experiments[0].data) if whole_splits else [None] * len(members)

        def save(step: int, which: Sequence[int]) -> None:
            stack.tell(step, factor_of(max(0, step - 1)))
            for k in which:
                keepers[k].save(step, finite[k])

        saved_at = time.monotonic()
        stack.tell(first, factor_of(first))
        evaluated = evaluate(first) if first == 0 else []
        for k, member in enumerate(members):
            if member.start is None:
                keepers[k].record(0, finite[k], evaluated[k])
            elif not finite[k] and keepers[k].last_step == first:
                member.outcome = "diverged"
        for experiment in experiments:  # for what is measured in a step; the optimizers themselves take none
            exits.enter_context(experiment.regularizer.attach(experiment.optimizer))
        for step in range(first, steps):
            done, factor = step + 1, factor_of(step)
            logged = any(due(config, every, done) for every in ("log_every", *FULLER))
            losses = stack.network.backward(*batches(step))
            if logged:
                stack.tell(step, factor)
                for k in still_training():
                    keepers[k].before_step()
            if config["clip_norm"] is not None:
                stack.network.clip(config["clip_norm"])
            stack.update(step, factor)
            finite &= torch.isfinite(losses)
            if logged:
                stack.tell(done, factor)
                evaluated = evaluate(done)
                for k in still_training():
                    keepers[k].after_step()
                    if not keepers[k].record(done, finite[k], evaluated[k]):
                        finite[k] = False
                        save(done, [k])
                        members[k].outcome = "diverged"
                if not (left := still_training()):
                    return
                progress.update(done, keepers[left[0]].last)
            stopping = stop_requested()
            if done == steps or stopping or time.monotonic() - saved_at >= checkpoint_seconds:
                save(done, still_training())
                saved_at = time.monotonic()
            if stopping and done < steps:
                break
        for k in still_training():
            members[k].outcome = "done" if done == steps else "interrupted"


def step_of(member: Member) -> int:
    """How many updates a run has behind it."""
    return 0 if member.start is None else member.start["step"]
