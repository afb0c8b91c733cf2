"""The contract of every weight decay method: which penalty, applied when, how strongly.

A method overrides the moments it needs; ``attach`` wires them to the step hooks of a torch optimizer, so a method works
in any training loop that calls ``optimizer.step()``. Its arithmetic is a pure function of tensors and scalars in the
method's own file; the class only says when it happens.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from wdlab.homogeneous import weights

SCOPES = ("weights", "all")


class Handle:
    """What ``attach`` returns: ``remove()`` takes the method off the optimizer again. Also a context manager."""

    def __init__(self, remove: Callable[[], None]) -> None:
        self._remove: Callable[[], None] | None = remove

    def remove(self) -> None:
        """Detach. Calling it twice does nothing the second time."""
        if self._remove is not None:
            self._remove()
            self._remove = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class _Wiring:
    """The methods attached to one optimizer. They go through the moments of its steps together: ``after_backward`` of
    all, then ``before_step`` of all, the step, ``after_step`` of all; each time in the order of their attachment."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.methods: list[Regularizer] = []
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> Self:
        """The optimizer's wiring, made when first asked for."""
        if not hasattr(optimizer, "_wdlab_wiring"):
            optimizer._wdlab_wiring = cls(optimizer)
        return optimizer._wdlab_wiring

    def _before(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> tuple | None:
        if self.methods and getattr(optimizer, "grad_scale", None) is not None:
            raise RuntimeError(
                "the gradients are still scaled: call scaler.unscale_(optimizer) before scaler.step(optimizer)"
            )
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            if not _is_skipped(optimizer):
                self._gradients_are_there()
            return None

        def closure_then_moments() -> Any:
            loss = closure()
            self._gradients_are_there()
            return loss

        return args[:1], {**kwargs, "closure": closure_then_moments}

    def _gradients_are_there(self) -> None:
        for method in self.methods:
            method.after_backward()
        for method in self.methods:
            method.before_step()

    def _after(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if not _is_skipped(optimizer):
            for method in self.methods:
                method.after_step()


def _is_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a GradScaler makes this step of a fused optimizer do nothing; other optimizers it does not call then."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())


class Regularizer:
    """No regularization, and the base of every method.

    Args:
        params: tensors to decay, or dicts ``{"params": [...], "strength": ...}`` as for torch optimizers.
        strength: s in ``L(train) + s * R(w)``, for groups that do not give their own. 0 switches the method off: the
            optimizer's steps are then bit-identical to those without it.

    Raises:
        ValueError: for a strength that is negative or not finite, an empty or repeated parameter list.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], strength: float = 0.0) -> None:
        entries = list(params)
        if not entries:
            raise ValueError("params: got an empty list")
        if not isinstance(entries[0], dict):
            entries = [{"params": entries}]
        self.groups: list[dict[str, Any]] = []
        for entry in entries:
            tensors = [entry["params"]] if isinstance(entry["params"], Tensor) else list(entry["params"])
            group_strength = check_strength(entry.get("strength", strength))
            self.groups.append({**entry, "params": tensors, "strength": group_strength})
        if len({id(p) for p in self.params}) != len(self.params):
            raise ValueError("params: a parameter appears more than once")
        self._optimizer: torch.optim.Optimizer | None = None

    @classmethod
    def for_model(cls, model: nn.Module, strength: float = 0.0, scope: str = "weights", **options: Any) -> Self:
        """The method on a whole model, as the YAML files in ``configs/regularizer`` name it.

        ``scope`` is ``weights`` (see ``wdlab.homogeneous.weights``) or ``all``; frozen parameters are left out.
        """
        if scope not in SCOPES:
            raise ValueError(f"scope={scope!r}: must be one of {', '.join(SCOPES)}")
        params = weights(model) if scope == "weights" else model.parameters()
        return cls([p for p in params if p.requires_grad], strength=strength, **options)

    @property
    def params(self) -> list[Tensor]:
        """All parameters this method acts on."""
        return [p for group in self.groups for p in group["params"]]

    @property
    def strength(self) -> float:
        """The strength in force, of the first group."""
        return self.groups[0]["strength"]

    # -- the moments of a step, in order -------------------------------------------------------------------------

    def after_backward(self) -> None:
        """Gradients of the loss are in ``p.grad``: add to them, or look at them."""

    def before_step(self) -> None:
        """Weights are still old: remember what the decay needs of them."""

    def after_step(self) -> None:
        """Weights are new: decay, shrink, project."""

    def penalty(self) -> Tensor:
        """``s * R(w)`` now, a scalar tensor on the parameters' device."""
        return torch.zeros((), device=self.params[0].device)

    # -- wiring --------------------------------------------------------------------------------------------------

    def attach(self, optimizer: torch.optim.Optimizer) -> Handle:
        """Run this method's moments inside every ``optimizer.step()``, closures included.

        Several methods may be attached: at each moment they act in the order of their attachment.

        Returns:
            A handle whose ``remove()`` detaches the method.

        With a GradScaler, call ``scaler.unscale_(optimizer)`` before ``scaler.step(optimizer)``; a step that the scaler
        skips is skipped here too.

        Raises:
            ValueError: if the optimizer does not hold all of this method's parameters.
            RuntimeError: if this method is attached already; in a step, if its gradients are still scaled.
        """
        if self._optimizer is not None:
            raise RuntimeError(f"this {type(self).__name__} is already attached to an optimizer")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = sum(id(p) not in held for p in self.params)
        if missing:
            raise ValueError(f"{missing} of {len(self.params)} parameters are not in the optimizer")
        wiring = _Wiring.of(optimizer)
        self._optimizer = optimizer
        wiring.methods.append(self)

        def remove() -> None:
            self._optimizer = None
            wiring.methods.remove(self)

        return Handle(remove)

    def lr_of(self, tensors: Iterable[Tensor]) -> list[float | Tensor]:
        """The learning rate each parameter has in the attached optimizer at this step."""
        assert self._optimizer is not None, "lr_of is for the moments of a step"
        lr = {id(p): group["lr"] for group in self._optimizer.param_groups for p in group["params"]}
        return [lr[id(p)] for p in tensors]

    # -- exact resume --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs, as plain types and tensors."""
        return {"strengths": [group["strength"] for group in self.groups]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a ``state_dict()``.

        Raises:
            ValueError: if it was saved with another number of groups.
        """
        strengths = state["strengths"]
        if len(strengths) != len(self.groups):
            raise ValueError(f"state has {len(strengths)} groups, this {type(self).__name__} has {len(self.groups)}")
        for group, strength in zip(self.groups, strengths, strict=True):
            group["strength"] = strength


def check_strength(strength: float) -> float:
    """``strength`` if it is a finite number >= 0; otherwise a ValueError that says so."""
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise ValueError(f"strength={strength!r}: must be a number >= 0")
    if not math.isfinite(strength) or strength < 0:
        raise ValueError(f"strength={strength}: must be a finite number >= 0")
    return strength
