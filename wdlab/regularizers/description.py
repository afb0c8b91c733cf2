"""Texts that list which tensors are decayed and how strongly. Used by the methods and the drop-in optimizers."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class TensorRow(NamedTuple):
    """One tensor in a text of :func:`describe`."""

    tensor: Tensor
    strength: float  # without factors over time
    name: str = ""  # empty if the name is not known
    note: str = ""  # remark at the end of the tensor's line

    @property
    def acts(self) -> bool:
        """True if the tensor is decayed: its strength is not 0 and it requires a gradient."""
        return self.strength != 0 and self.tensor.requires_grad


def describe(title: str, rows: Iterable[TensorRow], remarks: Sequence[str] = (), strength: str = "strength") -> str:
    """Return a text on decayed tensors: a summary in one line, then per tensor a line with name, shape, size, strength.

    Args:
        title: name of the method or optimizer that decays the tensors.
        rows: the tensors. Those with strength 0 are left out; frozen ones are marked as frozen and not counted. If no
            tensor is decayed, the text is one line that gives the reason.
        remarks: further remarks in the summary, such as "multiplied by the learning rate".
        strength: word for the strength in the text.
    """
    rows = [row for row in rows if row.strength != 0]
    acting = [row for row in rows if row.acts]
    if not acting:
        return f"{title}: decays nothing, " + ("all its tensors are frozen" if rows else f"{strength} 0")
    values = sorted({row.strength for row in acting})
    strengths = f"{strength} {values[0]:g}" if len(values) == 1 else f"{strength} {values[0]:g} to {values[-1]:g}"
    count = sum(row.tensor.numel() for row in acting)
    size = f"{len(acting):,} tensor{'s' * (len(acting) > 1)}, {count:,} value{'s' * (count > 1)}"
    width = max(len(row.name) for row in rows)
    return "\n".join([", ".join([f"{title}: {size}", strengths, *remarks]), *(_line(row, width) for row in rows)])


def _line(row: TensorRow, width: int) -> str:
    shape = " x ".join(map(str, row.tensor.shape)) or "scalar"
    note = row.note if row.tensor.requires_grad else "frozen: not decayed"
    cells = [row.name.ljust(width), shape.rjust(16), f"{row.tensor.numel():>12,}", f"{row.strength:>10g}"]
    return ("  " + "  ".join(cells if width else cells[1:]) + f"  {note}").rstrip()


def describe_weight_decay(optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> str:
    """Return a text on what an optimizer's own ``weight_decay`` decays, in the form of ``Regularizer.describe``.

    The text says "multiplied by the learning rate", which holds for every optimizer of torch.

    Args:
        optimizer: any optimizer. A group without ``weight_decay`` counts as not decayed.
        model: the network that names the parameters, unless the optimizer was given named parameters; None: no names.
    """
    names = names_of(model)
    rows = []
    for group in optimizer.param_groups:
        given = group.get("param_names", [""] * len(group["params"]))
        strength = float(group.get("weight_decay", 0))
        rows += [TensorRow(p, strength, n or names.get(id(p), "")) for p, n in zip(group["params"], given, strict=True)]
    return describe(type(optimizer).__name__, rows, ["multiplied by the learning rate"], "weight_decay")


def names_of(model: nn.Module | None) -> dict[int, str]:
    """Return the full name of each parameter of a model by the parameter's ``id``; {} for None.

    A parameter that the model has under several names gets the first of them.
    """
    return {} if model is None else {id(p): name for name, p in model.named_parameters()}
