"""The parameters of a method, in groups with a strength each, and their places in a model."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from wdlab.regularizers.checks import check_strength
from wdlab.regularizers.description import Row

Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]


class Place(NamedTuple):
    """The place of a parameter in a model."""

    name: str  # in full
    module: nn.Module
    attribute: str
    tensor: Tensor

    @property
    def is_replaced(self) -> bool:
        """True if the model has another parameter there now."""
        now = self.module._parameters.get(self.attribute)
        return now is not None and now is not self.tensor


def places_of(params: Iterable[Tensor], model: nn.Module) -> list[Place]:
    """Return every place of the parameters in a model; a shared parameter has several."""
    own = {id(p) for p in params}
    return [
        Place(f"{path}.{name}".lstrip("."), module, name, p)
        for path, module in model.named_modules()
        for name, p in module.named_parameters(recurse=False)
        if id(p) in own
    ]


class DecayedParameters:
    """Groups of parameters with a strength each.

    Args:
        params: tensors, named tensors, or dicts ``{"params": [...], "strength": ...}``.
        strength: for groups that do not give their own.
    """

    def __init__(self, params: Params, strength: float) -> None:
        self._default_strength = check_strength(strength)
        self._checked: Mapping | None = None  # the ``group_of`` in which all parameters were found
        self._places: list[Place] = []
        self.groups: list[dict[str, Any]] = []
        entries = [params] if isinstance(params, Tensor | dict) else list(params)
        if not entries:
            raise ValueError("params: got an empty list")
        for entry in entries if isinstance(entries[0], dict) else [{"params": entries}]:
            self.add_param_group(entry)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Decay more parameters from now on: ``{"params": [...], "strength": ...}``, as torch optimizers take them.

        Raises:
            ValueError: for parameters that are there already, that are complex, or (if this method is attached) that
                the optimizer does not hold; for a bad strength.
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
        known = [id(p) for p in (*self.params, *tensors)]
        if len(set(known)) != len(known):
            raise ValueError("params: a parameter appears more than once")
        self._check_added(tensors)
        self.groups.append({**group, "params": tensors, "strength": strength})

    def _check_added(self, tensors: Sequence[Tensor]) -> None:
        """Raise a ValueError for tensors that cannot be added."""

    @property
    def params(self) -> list[Tensor]:
        """All parameters that this method acts on."""
        return [p for group in self.groups for p in group["params"]]

    @property
    def strength(self) -> float:
        """The strength of the first group as it was given; ``strength_in_force`` has the factors over time."""
        return self.groups[0]["strength"]

    def _rows(self) -> list[Row]:
        """Return the tensors in the order of ``params``, for ``describe``."""
        names = {id(place.tensor): place.name for place in reversed(self._places)}
        rows = []
        for group in self.groups:
            given = group.get("param_names", [""] * len(group["params"]))
            for p, name in zip(group["params"], given, strict=True):
                rows.append(Row(p, group["strength"], name or names.get(id(p), "")))
        return rows

    def check_replaced(self, group_of: Mapping[int, dict[str, Any]]) -> None:
        """Check that the parameters are still those of the optimizer and of the model.

        It takes a few microseconds while nothing has changed.

        Args:
            group_of: the optimizer's group of each of its parameters, by id; the same dict while nothing has changed.

        Raises:
            RuntimeError: if a parameter was replaced, since the new one would not be decayed.
        """
        if group_of is self._checked and not self._replaced():
            return
        if all(group["strength"] == 0 for group in self.groups):
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
        """Return the names of the parameters that were replaced in the model."""
        return [place.name for place in self._places if place.is_replaced]
