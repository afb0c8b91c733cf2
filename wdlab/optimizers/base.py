"""The base class of the drop-in torch optimizers: checks of groups and gradients, a base step without weight decay.

The drop-ins support all that torch's own optimizers do: groups with values of their own, closures, schedulers,
``state_dict``, missing gradients. They are built from the methods in ``wdlab.regularizers``: the base optimizer takes
its step without weight decay, and the method decays the weights.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from wdlab.regularizers import Regularizer
from wdlab.regularizers.checks import as_number, check_number
from wdlab.regularizers.description import Row, describe
from wdlab.regularizers.hooks import run_after_step, run_before_step
from wdlab.regularizers.views import OptimizerView
from wdlab.strides import match_state, same_strides, with_strides_of

# For adding 1 to Adam's step counters: `_foreach_add_` with a CPU tensor takes a third of the time it takes with a
# Python number.
ONE = torch.tensor(1.0, device="cpu")

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class DropIn(torch.optim.Optimizer):
    """The common base of ``AdamS``, ``SGDS`` and ``PAdam``.

    A group's ``weight_decay`` is the method's strength. The base optimizer's step sees another value, mostly 0.
    """

    stacked_settings: ClassVar[tuple[str, ...]] = ()  # in which runs of one stack may differ; () if it is not stackable
    _strides: Sequence[tuple[int, ...]] = ()  # of the fused groups' parameters at the last step, and of their moments

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as in torch, after checking its values.

        Raises:
            ValueError: if a parameter is complex, or a value is out of its range. No group is added then.
        """
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        try:
            if any(p.is_complex() for p in added["params"]):
                raise ValueError(f"params: {type(self).__name__} does not support complex parameters")
            self._check_group(added)
        except ValueError:
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        group["weight_decay"] = check_number("weight_decay", group["weight_decay"], lowest=0.0)

    def _complete_loaded_group(self, group: dict[str, Any]) -> None:
        """Add the keys that a loaded group lacks if torch's own optimizer saved it."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            self._complete_loaded_group(group)
        self._step_supports_amp_scaling = False  # a GradScaler must unscale first: the method reads the gradients
        self._strides = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one update, decay included.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            The closure's loss, or None without a closure.

        Raises:
            RuntimeError: if a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        misaligned = self._check_gradients()
        try:
            for p, gradient in misaligned:
                p.grad = with_strides_of(gradient, p)
            self._update()
        finally:
            for p, gradient in misaligned:
                p.grad = gradient
        return loss

    def _check_gradients(self) -> list[tuple[Tensor, Tensor]]:
        """Check the gradients, and prepare the moments of fused groups for a step.

        After a parameter's strides have changed, or a state was loaded, the moments get the parameters' strides.

        Returns:
            The parameters of fused groups whose gradients have other strides, with these gradients.

        Raises:
            RuntimeError: if a gradient is sparse.
        """
        misaligned, strides = [], []
        for group in self.param_groups:
            fused = group["fused"]
            for p in group["params"]:
                if fused:
                    strides.append(p.stride())
                if (gradient := p.grad) is None:
                    continue
                if gradient.is_sparse:
                    raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
                if fused and gradient.stride() != strides[-1] and not same_strides(gradient, p):
                    misaligned.append((p, gradient))
        if strides != self._strides:
            match_state(self)
            self._strides = strides
        return misaligned

    def _update(self) -> None:
        """Take the step itself, decay included. ``step`` has checked the gradients."""

    @contextlib.contextmanager
    def _base_weight_decay(self, values: Iterable[float]) -> Iterator[None]:
        """Replace the groups' ``weight_decay`` for the base optimizer's step, and restore the user's on leaving.

        Args:
            values: one per group.
        """
        users = [group["weight_decay"] for group in self.param_groups]
        try:
            for group, value in zip(self.param_groups, values, strict=True):
                group["weight_decay"] = value
            yield
        finally:
            for group, value in zip(self.param_groups, users, strict=True):
                group["weight_decay"] = value

    @classmethod
    def make_method(cls, groups: list[dict[str, Any]]) -> Regularizer:
        """Return the method that the optimizer's weight decay is, on groups as ``decayed_group`` returns them."""
        raise NotImplementedError(f"{cls.__name__} does its decay in its own step")

    @torch.compiler.disable  # if the user compiles the whole step: it changes attributes of the method
    def _step_with_method(self, base: type[torch.optim.Optimizer]) -> None:
        """Take the base optimizer's step without weight decay, and run the method before and after it.

        Args:
            base: torch's optimizer class.
        """
        groups = [self.decayed_group(group) for group in self.param_groups]
        groups = [group for group in groups if group["params"]]
        if groups and not hasattr(self, "_method"):
            self._method = self.make_method(groups)
            self._method.bind(OptimizerView(self, type(self).__name__))
        methods = [self._method] if groups else []
        for method in methods:
            method.groups = groups  # the user may have changed the optimizer's groups since the last step
        with self._base_weight_decay([0.0] * len(self.param_groups)):
            run_before_step(methods)
            unhooked_step(base)(self)
            run_after_step(methods)

    def decayed_group(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return the method's group for one of the optimizer's groups: decayed parameters and strength."""
        return {"params": group["params"], "strength": as_number(group["weight_decay"])}

    def describe(self) -> str:
        """Return which tensors are decayed and how strongly, in the format of ``Regularizer.describe``.

        Tensors have names if the optimizer was given named parameters.
        """
        rows = []
        for group in self.param_groups:
            names = {id(p): name for p, name in zip(group["params"], group.get("param_names", ()), strict=False)}
            decayed = self.decayed_group(group)
            rows += [Row(p, decayed["strength"], names.get(id(p), "")) for p in decayed["params"]]
        return describe(type(self).__name__, rows, ["multiplied by the learning rate"], "weight_decay")


def unhooked_step(base: type[torch.optim.Optimizer]) -> Callable:
    """Return the base class's ``step`` without torch's profiling and hooks, which ``DropIn.step`` has already."""
    step = base.step
    while getattr(step, "hooked", False):
        step = step.__wrapped__
    return step
