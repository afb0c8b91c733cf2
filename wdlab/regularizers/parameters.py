"""The parameters of a method, in groups that have one strength each, and the places of the parameters in a model."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from wdlab.homogeneous import weights
from wdlab.regularizers.checks import check_choice, check_strength
from wdlab.regularizers.description import TensorRow
from wdlab.regularizers.over_time import OverTime, why_always_zero
from wdlab.schedules import Clock

SCOPES = ("weights", "all")
# what methods take in place of a model, by the name of their first argument
_EXPECTED = {"params": "parameters or groups of parameters", "pairs": "pairs of layers"}
Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]


class ParameterPlace(NamedTuple):
    """The place of a parameter in a model: an attribute of a module."""

    name: str  # full name of the parameter, such as "layers.0.weight"
    module: nn.Module  # module that owns the parameter
    attribute: str  # name of the parameter in ``module``
    tensor: Tensor  # the parameter

    @property
    def is_replaced(self) -> bool:
        """True if the module has another parameter under this name now; False if it has the same one, or none."""
        current = self.module._parameters.get(self.attribute)
        return current is not None and current is not self.tensor


def places_of(params: Iterable[Tensor], model: nn.Module) -> list[ParameterPlace]:
    """Return all places of ``params`` in a model; a parameter that several modules share has several places."""
    ids = {id(p) for p in params}
    return [
        ParameterPlace(f"{path}.{name}".lstrip("."), module, name, p)
        for path, module in model.named_modules()
        for name, p in module.named_parameters(recurse=False)
        if id(p) in ids
    ]


def params_in_scope(model: nn.Module, scope: str) -> list[Tensor]:
    """Return the parameters of a model that are not frozen: those of ``homogeneous.weights``, or all for ``all``.

    Raises:
        ValueError: for an unknown scope, or if all parameters in the scope are frozen.
    """
    check_choice("scope", scope, SCOPES)
    params = [p for p in (weights(model) if scope == "weights" else model.parameters()) if p.requires_grad]
    if not params:
        raise ValueError(f"scope={scope}: nothing to decay, all of it is frozen in {type(model).__name__}")
    return params


class DecayedParameters:
    """The base class of ``Regularizer``: the parameters to decay, in groups that have one strength each.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or groups ``{"params": [...], "strength": ...}``.
        strength: for the groups without an own ``strength``.

    Raises:
        ValueError: if there are no parameters, for a module in their place, and as :meth:`add_param_group`.
    """

    over_time: tuple[OverTime, ...]
    clock: Clock

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        # before ``__init__`` of any subclass, which would fail with another error, also if ``strength`` is not given
        name = next(iter(inspect.signature(cls).parameters), "")
        given = arguments[0] if arguments else options.get(name)
        if name in _EXPECTED and isinstance(given, nn.Module):
            raise ValueError(
                f"{name}: must be {_EXPECTED[name]}, got the module {type(given).__name__}; "
                f"use {cls.__name__}.for_model(model, strength)"
            )
        return super().__new__(cls)

    def __init__(self, params: Params, strength: float) -> None:
        self._default_strength = check_strength(strength)
        self._checked: Mapping | None = None  # the last ``group_of`` that ``check_replaced`` has approved
        self._places: list[ParameterPlace] = []
        self.groups: list[dict[str, Any]] = []
        entries = [params] if isinstance(params, Tensor | dict) else list(params)
        if not entries:
            raise ValueError("params: got an empty list")
        for entry in entries if isinstance(entries[0], dict) else [{"params": entries}]:
            self.add_param_group(entry)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add a group of parameters to decay.

        Args:
            group: ``{"params": [...], "strength": ...}``, as for a torch optimizer. ``params`` has tensors or
                ``(name, tensor)`` pairs; without ``strength`` the group gets the default of this method.

        Raises:
            ValueError: for an empty list of parameters; for a parameter that is complex, that this method has already,
                or (if this method is attached) that the optimizer does not hold; for a negative or non-finite strength.
        """
        tensors = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        if any(isinstance(p, tuple) for p in tensors):
            group = {**group, "param_names": [name for name, _ in tensors]}
            tensors = [p for _, p in tensors]
        if not tensors:
            raise ValueError("params: got an empty list")
        strength = check_strength(group.get("strength", self._default_strength))
        if any(p.is_complex() for p in tensors):
            raise ValueError(f"params: {type(self).__name__} does not decay complex parameters")
        ids = [id(p) for p in (*self.params, *tensors)]
        if len(set(ids)) != len(ids):
            raise ValueError("params: a parameter appears more than once")
        self._check_added(tensors)
        self.groups.append({**group, "params": tensors, "strength": strength})

    def _check_added(self, tensors: Sequence[Tensor]) -> None:
        """Hook of ``add_param_group``: raise a ValueError if a tensor cannot be added. Does nothing by default."""

    @property
    def params(self) -> list[Tensor]:
        """The parameters of all groups, in the order of the groups."""
        return [p for group in self.groups for p in group["params"]]

    @property
    def strength(self) -> float:
        """The strength of the first group, without the factors of ``over_time``."""
        return self.groups[0]["strength"]

    @property
    def is_off(self) -> bool:
        """True if the method does nothing, since all its strengths are 0."""
        return all(group["strength"] == 0 for group in self.groups)

    def check_decays(self) -> None:
        """Raise a ValueError if nothing will be decayed although a strength is not 0.

        Steps of a run are looked at if the method's ``clock`` has the length of the run and of an epoch.
        """
        if reason := self._reason_to_be_idle():
            raise ValueError(f"strength={self.strength}: would decay nothing, {reason}; strength=0 is without decay")

    def _rows(self) -> list[TensorRow]:
        """Return a row of ``describe`` for each tensor, in the order of ``params``."""
        names = {id(place.tensor): place.name for place in reversed(self._places)}
        rows = []
        for group in self.groups:
            given = group.get("param_names", [""] * len(group["params"]))
            for p, name in zip(group["params"], given, strict=True):
                rows.append(TensorRow(p, group["strength"], name or names.get(id(p), ""), self._note_on(p)))
        return rows

    def _note_on(self, p: Tensor) -> str:
        """Hook of ``describe``: return a remark on a tensor. By default the remarks of ``over_time``."""
        return ", ".join(filter(None, (schedule.note_on(p) for schedule in self.over_time)))

    def _reason_to_be_idle(self) -> str | None:
        """Return why nothing is decayed although a strength is not 0; None if something is, or all strengths are 0."""
        if all(group["strength"] == 0 for group in self.groups):
            return None
        if not any(p.requires_grad for group in self.groups if group["strength"] != 0 for p in group["params"]):
            return "all its parameters are frozen"
        return why_always_zero(self.over_time, self.clock)

    def check_replaced(self, group_of: Mapping[int, dict[str, Any]]) -> None:
        """Check that the optimizer and the model still hold the parameters of this method.

        The check takes a few microseconds while the optimizer's groups do not change. Parameters whose strength is 0
        need not be in the optimizer; if all strengths are 0, nothing is checked.

        Args:
            group_of: the optimizer's group of each of its parameters, by the parameter's ``id``; the same dict object
                as in the last call if the groups have not changed.

        Raises:
            RuntimeError: if a parameter was replaced, since the new parameter would not be decayed.
        """
        if group_of is self._checked and not self._replaced():
            return
        if self.is_off:
            return
        rows = [row for row in self._rows() if row.strength != 0 and id(row.tensor) not in group_of]
        names = [row.name or f"one of shape {tuple(row.tensor.shape)}" for row in rows]
        lost = [f"{name} is not in the optimizer any more" for name in names]
        lost += [f"{name} is another parameter now" for name in self._replaced()]
        if lost:
            kind = type(self).__name__
            raise RuntimeError(
                f"{kind}: {lost[0]}{f' (and {len(lost) - 1} more)' if len(lost) > 1 else ''}. Take this method off "
                f"(handle.remove()), make a new {kind} with the parameters of now, and attach it"
            )
        self._checked = group_of

    def _replaced(self) -> list[str]:
        """Return the full names of the parameters that the model has replaced by other parameters."""
        return [place.name for place in self._places if place.is_replaced]
