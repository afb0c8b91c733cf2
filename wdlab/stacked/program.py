"""Runs of one MLP that differ in numbers only, trained side by side as one batched program. Called by ``launchers``.

A stack is a list of ordinary experiments whose tensors lie next to each other in memory: what a run is measured,
recorded and saved by reads its own rows, and never knows. The networks go forward and backward by batched matrix
products; the methods' own arithmetic acts on all runs at once, with a strength and a learning rate for each.
"""

import contextlib
import copy
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wdlab import regularizers
from wdlab.data import StackedBatches
from wdlab.engine.experiment import Experiment
from wdlab.engine.progress import Progress
from wdlab.engine.run_log import FULL_LOG_KEYS, RunLog, is_due
from wdlab.metrics import Evaluated
from wdlab.optimizers import SGDS, PAdam
from wdlab.records.directory import RunDirectory
from wdlab.records.recorder import Recorder
from wdlab.regularizers.checks import is_sgd
from wdlab.regularizers.hooks import run_after_step, run_before_step
from wdlab.stacked.methods import StackedMethod, as_column
from wdlab.stacked.network import Network
from wdlab.stacked.steps import AdamStep, SGDStep


@dataclass
class StackedRun:
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


# -- the loop


class Stack:
    """Members in one program.

    Args:
        members: runs of one network on one data set, at the same step, those of one method next to each other.
        kinds: per member what tells its method from others; equal for those that differ in strength only.
        step: at which they are.
    """

    def __init__(self, members: Sequence[StackedRun], kinds: Sequence[str], step: int) -> None:
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
        self._lrs = as_column(self._numbers(self._base_lrs))
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
            run_before_step([rows.method])
        self._step(lr, step)
        for rows in reversed(self._rows):  # an optimizer's own decay is inside of its step
            run_after_step([rows.method])

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

    def _methods(self, first: int, last: int) -> list[StackedMethod]:
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
            StackedMethod(method, one.optimizer, one.model, self.network, slice(first, last), self._numbers(strengths))
            for method, strengths in decays
            if any(strengths)
        ]

    def _numbers(self, values: Sequence[float]) -> Tensor:
        like = self.network.weights[0]
        return torch.tensor(values, device=like.device, dtype=like.dtype)


def fit(
    members: Sequence[StackedRun],
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
            keepers.append(RunLog(member.experiment, config, member.run, member.recorder, per_epoch))
        progress = exits.enter_context(Progress(f"{len(members)} runs in one stack", steps, first))

        def still_training() -> list[int]:
            return [k for k, member in enumerate(members) if member.outcome is None]

        def factor_of(step: int) -> float:
            return experiments[0].lr_factor(step, steps, per_epoch)

        def evaluate(step: int) -> Sequence[Evaluated | None]:
            whole_splits = is_due(config, "eval_every", step)
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
            logged = any(is_due(config, every, done) for every in ("log_every", *FULL_LOG_KEYS))
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


def step_of(member: StackedRun) -> int:
    """How many updates a run has behind it."""
    return 0 if member.start is None else member.start["step"]
