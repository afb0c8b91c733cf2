"""The base of the drop-in torch optimizers: checks of groups and gradients, and a base step without weight decay.

The drop-ins follow torch's own optimizers to the letter (parameter groups with values of their own, closures,
schedulers, ``state_dict``, missing gradients) and are built from the methods in ``wdlab.regularizers``: the base
optimizer takes its step without weight decay, the method does the decay.
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
from wdlab.strides import laid_out_like, lie_alike, match_state

ONE = torch.tensor(1.0, device="cpu")  # added to many scalar tensors on the CPU, it takes a third of the time of 1

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class DropIn(torch.optim.Optimizer):
    """What the three have in common: a group's ``weight_decay`` is the method's; the base optimizer sees another."""

    stacked_settings: ClassVar[tuple[str, ...]] = ()  # in which runs of one stack may differ; () if it is not stackable
    _strides: Sequence[tuple[int, ...]] = ()  # of the parameters of fused groups, with which their moments agree

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; complex parameters are refused by a ValueError."""
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

    def _complete(self, group: dict[str, Any]) -> None:
        """Make a group that torch's own optimizer saved one of ours."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            self._complete(group)
        self._step_supports_amp_scaling = False  # a GradScaler has to unscale first: V is made of the gradients
        self._strides = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: for a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        others = self._check_gradients()
        try:
            for p, gradient in others:
                p.grad = laid_out_like(gradient, p)
            self._update()
        finally:
            for p, gradient in others:
                p.grad = gradient
        return loss

    def _check_gradients(self) -> list[tuple[Tensor, Tensor]]:
        """Refuse sparse gradients; return the parameters of fused groups whose gradients lie otherwise in memory.

        The moments of fused groups are laid out again where a parameter's strides have changed, or a state was loaded.
        """
        others, strides = [], []
        for group in self.param_groups:
            fused = group["fused"]
            for p in group["params"]:
                if fused:
                    strides.append(p.stride())
                if (gradient := p.grad) is None:
                    continue
                if gradient.is_sparse:
                    raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
                if fused and gradient.stride() != strides[-1] and not lie_alike(gradient, p):
                    others.append((p, gradient))
        if strides != self._strides:
            match_state(self)
            self._strides = strides
        return others

    def _update(self) -> None:
        """The step itself, decay included; gradients are in place and have been checked."""

    @contextlib.contextmanager
    def _base_weight_decay(self, values: Iterable[float]) -> Iterator[None]:
        """Show the base optimizer other weight decays than the user's, for the duration of its step."""
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
        """Return the method that the optimizer's weight decay is, on groups as ``decayed`` gives them."""
        raise NotImplementedError(f"{cls.__name__} does its decay in its own step")

    @torch.compiler.disable  # for those who compile the whole step: attributes of the method change in it
    def _step_with_method(self, base: type[torch.optim.Optimizer]) -> None:
        """Take the step of the base optimizer without weight decay, with the moments of the method around it."""
        groups = [self.decayed(group) for group in self.param_groups]
        groups = [group for group in groups if group["params"]]
        if groups and not hasattr(self, "_method"):
            self._method = self.make_method(groups)
            self._method.bind(OptimizerView(self, type(self).__name__))
        methods = [self._method] if groups else []
        for method in methods:
            method.groups = groups  # as they are now
        with self._base_weight_decay([0.0] * len(self.param_groups)):
            run_before_step(methods)
            plain_step(base)(self)
            run_after_step(methods)

    def decayed(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return what of a group is decayed, as a group of the method."""
        return {"params": group["params"], "strength": as_number(group["weight_decay"])}

    def describe(self) -> str:
        """Return what is decayed and how strongly, as ``Regularizer.describe``; with names if it was given named
        parameters."""
        rows = []
        for group in self.param_groups:
            names = {id(p): name for p, name in zip(group["params"], group.get("param_names", ()), strict=False)}
            decayed = self.decayed(group)
            rows += [Row(p, decayed["strength"], names.get(id(p), "")) for p in decayed["params"]]
        return describe(type(self).__name__, rows, ["multiplied by the learning rate"], "weight_decay")


def plain_step(base: type[torch.optim.Optimizer]) -> Callable:
    """The base class's ``step`` without torch's profiling and hooks, which run around ours already."""
    step = base.step
    while getattr(step, "hooked", False):
        step = step.__wrapped__
    return step
