"""Factors on a strength that depend on the peak of the learning rate: corrected and independent weight decay."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from wdlab.homogeneous import if_traceable, normalized_weights
from wdlab.regularizers.checks import as_number, check_choice, check_number
from wdlab.regularizers.over_time import ObservedMethod, OverTime
from wdlab.regularizers.runs import gathered
from wdlab.regularizers.views import ParametersView
from wdlab.schedules import Clock
from wdlab.tensors import scalar_for

SCOPES = ("normalized", "all")
ROUNDING = 1e-6  # relative excess of a learning rate over its peak that is not an error


class OfPeakRate(OverTime):
    """The base class of the factors that depend on ``a_max``, the peak learning rate of each group of the optimizer.

    In a run of ``wdlab.train``, ``a_max`` is exact: the optimizer's ``lr`` times the largest factor of the learning
    rate's schedule in the run. In any other training loop it is ``max_lr`` of the optimizer's group, which torch's
    ``OneCycleLR`` sets, else ``initial_lr``, which torch's other schedulers set, else the learning rate at ``attach``.

    Args:
        peak_lr: ``a_max`` of all groups, > 0, in place of these. To be given for a schedule that rises above
            ``initial_lr``, such as torch's ``CyclicLR``, or that the training loop computes itself.

    Raises:
        ValueError: if ``peak_lr`` is not a finite number > 0; at ``attach``, if ``a_max`` is 0.
        RuntimeError: in a step, if the learning rate is greater than ``a_max`` and both are Python numbers.
    """

    def __init__(self, peak_lr: float | None = None) -> None:
        self.peak_lr = None if peak_lr is None else check_number("peak_lr", peak_lr, above=0.0)
        self._lrs: dict[Tensor, float] = {}  # learning rate at ``attach`` by the first parameter of the group
        self._order: list[Tensor] = []  # these parameters in the order of the groups of the last optimizer
        self._loaded: list[float] = []  # learning rates that were loaded, per group, and not yet assigned to groups
        self._view: ParametersView | None = None  # only for a stack: its view, and the value in ``_lrs`` of each run
        self._lr_of_runs: Tensor | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'' if self.peak_lr is None else f'peak_lr={self.peak_lr:g}'})"

    def check(self, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
        # In a run of wdlab.train the first attachment, by build_parts, counts: later the schedule has changed the lrs.
        if self._loaded or clock.lr_schedule is None:
            self._order = []
            self._record(optimizer.param_groups)
        if any(as_number(self._peak(group, clock)) == 0 for group in optimizer.param_groups):
            raise ValueError(f"over_time={self!r}: the peak learning rate of the optimizer is 0; give it as peak_lr")

    def _record(self, groups: Sequence[dict[str, Any]]) -> None:
        """Record the learning rates of groups of the optimizer; in place of them those that were loaded, if any."""
        loaded, self._loaded = self._loaded, []
        for i, group in enumerate(group for group in groups if group["params"]):
            self._lrs[group["params"][0]] = loaded[i] if i < len(loaded) else as_number(group["lr"])
            self._order.append(group["params"][0])

    def observe(self, method: ObservedMethod) -> None:
        if method.view.runs is None:
            groups = method.optimizer.param_groups
            new = [group for group in groups if group["params"] and group["params"][0] not in self._lrs]
            if self._loaded:  # while the method was attached
                self._order = []
                self._record(groups)
            elif new:
                self._record(new)

    def note_on_method(self, method: ObservedMethod) -> str:
        if self.peak_lr is not None:  # which ``repr`` contains
            return ""
        if method.is_attached:
            self.observe(method)  # assigns learning rates that were loaded since the last step
            groups = [method.view.optimizer_group(p) for p in method.params if self.acts_on(p)]
            found = [self._peak(group, method.clock) for group in groups if group]
        else:  # between the check of a run and its first step; without the schedule the peak is not known yet
            factor = method.clock.peak_lr_factor
            found = [] if method.clock.lr_schedule is None else [lr * factor for lr in self._lrs.values()]
        values = [value for peak in found for value in torch.as_tensor(peak, dtype=torch.float64).flatten().tolist()]
        ends = dict.fromkeys(f"{value:g}" for value in (min(values), max(values))) if values else ()
        return f"optimizer's peak learning rate {' to '.join(ends) or 'not known yet'}"

    def _peak(self, group: dict[str, Any], clock: Clock) -> float | Tensor:
        """Return ``a_max`` of a group of the optimizer; for a stack a number per run, (runs, 1, 1)."""
        if self.peak_lr is not None:
            return self.peak_lr
        if self._lr_of_runs is not None:
            return self._lr_of_runs * clock.peak_lr_factor
        first = next(iter(group["params"]), None)
        given = group.get("max_lr", group.get("initial_lr"))
        if given is not None:
            return given if first is None else scalar_for(first, given)
        return self._lrs.get(first, group["lr"]) * clock.peak_lr_factor

    def _checked_peak(self, group: dict[str, Any], clock: Clock) -> float | Tensor:
        """Return ``_peak``; raise a RuntimeError if the learning rate is greater, both being Python numbers."""
        peak, lr = self._peak(group, clock), group["lr"]
        if not (isinstance(peak, Tensor) or isinstance(lr, Tensor)) and lr > peak * (1 + ROUNDING):
            kind, remedy = ("assumed", "") if self.peak_lr is None else ("given", "a larger ")
            raise RuntimeError(
                f"over_time={self!r}: the learning rate {lr:g} is above its {kind} peak {peak:g}; give {remedy}peak_lr"
            )
        return peak

    def gather_runs(self, method: ObservedMethod, runs: Sequence[Self]) -> None:
        self._view = method.view
        lrs = [run.state_dict()["lrs"] for run in runs]
        self._lr_of_runs = gathered([lr for (lr,) in lrs], method.tensors[0].new_empty(len(runs), 1, 1))

    def state_dict(self) -> dict[str, Any]:
        return {"lrs": list(self._loaded) or [self._lrs[p] for p in self._order]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loaded = list(state["lrs"])


class Corrected(OfPeakRate):
    """The factor ``a / a_max`` on weights whose output is normalized: the correction of AdamC and SGDC.

    [grade B]

    Defazio 2025, arXiv 2506.02285. ``a`` is the learning rate of the step, ``a_max`` its peak, see :class:`OfPeakRate`.
    Decoupled decay of such a weight becomes ``w *= 1 - s a^2 / a_max``. The gradient and the weight of a normalized
    layer approach the ratio ``|g| / |w| = sqrt(2 s / a)``; the correction keeps it constant while ``a`` changes, so
    gradients do not grow as the learning rate falls. The ratio holds for SGD without momentum. On all other weights the
    factor is 1. The learning rate does not multiply the decay of ``ConstrainedRegularization``: its decay contains
    ``a / a_max`` once.

    Args:
        scope: ``normalized`` for the weights of the layers that ``wdlab.homogeneous.normalized_weights`` finds in a
            model, or ``all`` for all parameters of the method.
        weights: the normalized weights, for a method that is made of a list of parameters. None: ``for_model`` finds
            them in the model.
        peak_lr: as in :class:`OfPeakRate`.

    Raises:
        ValueError: for an unknown scope, for ``weights`` with the scope ``all`` or that are one tensor, and as
            :class:`OfPeakRate`. With the scope ``normalized``: by ``for_model``, if the method decays no normalized
            weight, or ``torch.fx`` cannot trace the model; at ``attach``, if the method decays none of ``weights``, or
            if they are not given and the method was not made by ``for_model``.
        RuntimeError: as :class:`OfPeakRate`.
    """

    stackable = True

    def __init__(
        self, scope: str = "normalized", weights: Iterable[Tensor] | None = None, peak_lr: float | None = None
    ) -> None:
        super().__init__(peak_lr)
        self.scope = check_choice("scope", scope, SCOPES)
        if weights is not None and scope == "all":
            raise ValueError("weights: must not be given with scope='all', which corrects all parameters")
        if isinstance(weights, Tensor):
            raise ValueError("weights: got a tensor; give a list of tensors")
        self.weights = None if weights is None else list(weights)
        self._are_given = weights is not None
        self._ids: set[int] | None = None  # of the weights

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ids": None}

    def __repr__(self) -> str:
        options = [f"scope={self.scope}"] + ([] if self.peak_lr is None else [f"peak_lr={self.peak_lr:g}"])
        return f"{type(self).__name__}({', '.join(options)})"

    @property
    def is_partial(self) -> bool:
        return self.scope != "all"

    def acts_on(self, p: Tensor) -> bool:
        if self._ids is None:
            self._ids = {id(w) for w in self.weights or ()}
        return not self.is_partial or id(p) in self._ids

    def note_on(self, p: Tensor) -> str:
        return "corrected" if self.is_partial and self.acts_on(p) else ""

    def find_in(self, model: nn.Module, params: Sequence[Tensor]) -> None:
        if not self.is_partial or self._are_given:
            return
        # also if this strength is 0: in a stack the factor of one run acts on others, whose strengths may not be 0
        found = normalized_weights(model) if params else if_traceable(normalized_weights, model)
        decayed = {id(p) for p in params}
        if params and not any(id(w) in decayed for w in found):
            raise ValueError(
                f"over_time={self!r}: no decayed layer of {type(model).__name__} is followed directly by a batch or "
                "instance norm; to correct all parameters give Corrected('all'), on the command line "
                "regularizer.over_time.scope=all"
            )
        self.weights, self._ids = [*(self.weights or ()), *found], None

    def check_method(self, method: ObservedMethod) -> None:
        if self._are_given and not method.is_off and not any(map(self.acts_on, method.params)):
            raise ValueError(
                f"over_time={self!r}: the method decays none of the {len(self.weights)} given weights; to correct all "
                "parameters give Corrected('all')"
            )

    def check(self, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
        super().check(optimizer, clock)
        if self.is_partial and self.weights is None:
            raise ValueError(
                f"over_time={self!r}: the normalized weights are not known; give them as weights, make the method by "
                "for_model, or use scope='all'"
            )

    def factor(self, step: int, optimizer_group: dict[str, Any], clock: Clock = Clock()) -> float | Tensor:  # noqa: B008
        if self._view is not None:
            lr = self._view.lr_of(self._view.optimizer.param_groups[0]["params"][0])
            return lr / self._peak(optimizer_group, clock)
        if not optimizer_group:
            return 1.0
        peak = self._checked_peak(optimizer_group, clock)
        return scalar_for(optimizer_group["params"][0], optimizer_group["lr"]) / peak


class Independent(OfPeakRate):
    """The factor ``1 / a_max``: the decay does not depend on the peak learning rate, only on the form of its schedule.

    Independent weight decay, as the fully decoupled decay of Loshchilov and Hutter 2019, arXiv 1711.05101.  [grade B]

    ``a_max`` is the peak of the learning rate ``a``, see :class:`OfPeakRate`. Decoupled decay becomes ``w *= 1 - s a /
    a_max``. The same decay as decoupled decay of strength s at the peak needs the strength ``a_max s``.

    Args:
        peak_lr: as in :class:`OfPeakRate`.

    Raises:
        ValueError: as :class:`OfPeakRate`, and at ``attach`` for a method whose decay is not multiplied by the learning
            rate.
        RuntimeError: as :class:`OfPeakRate`.
    """

    stackable = True

    def check_method(self, method: ObservedMethod) -> None:
        if not method.times_lr and not method.is_off:
            raise ValueError(
                f"{type(self).__name__}: the decay of {type(method).__name__} is not multiplied by the learning rate; "
                "leave it out"
            )

    def factor(self, step: int, optimizer_group: dict[str, Any], clock: Clock = Clock()) -> float | Tensor:  # noqa: B008
        if not optimizer_group:
            return 1.0
        return 1 / (self._peak if self._view is not None else self._checked_peak)(optimizer_group, clock)
