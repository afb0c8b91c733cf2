"""Text that lists which tensors are decayed and how strongly. Used by the methods and the drop-in optimizers."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Row(NamedTuple):
    """One tensor and the strength of its decay, as given."""

    tensor: Tensor
    strength: float
    name: str = ""  # empty if it is not known
    note: str = ""

    @property
    def acts(self) -> bool:
        """True if the strength is not 0 and the weight is trained."""
        return self.strength != 0 and self.tensor.requires_grad


def describe(title: str, rows: Iterable[Row], remarks: Sequence[str] = (), strength: str = "strength") -> str:
    """Return a summary in one line, then a line for each tensor that is decayed: name, shape, size, strength.

    Args:
        title: what decays them.
        rows: tensors without a strength are left out; frozen ones are listed as such and not counted.
        remarks: what else the summary says, such as "multiplied by the learning rate".
        strength: what the strength is called there.
    """
    rows = [row for row in rows if row.strength != 0]
    acting = [row for row in rows if row.acts]
    if not acting:
        return f"{title}: decays nothing, " + ("all its tensors are frozen" if rows else f"{strength} 0")
    values = sorted({row.strength for row in acting})
    said = f"{strength} {values[0]:g}" if len(values) == 1 else f"{strength} {values[0]:g} to {values[-1]:g}"
    count = sum(row.tensor.numel() for row in acting)
    of = f"{len(acting):,} tensor{'s' * (len(acting) > 1)}, {count:,} value{'s' * (count > 1)}"
    width = max(len(row.name) for row in rows)
    return "\n".join([", ".join([f"{title}: {of}", said, *remarks]), *(_line(row, width) for row in rows)])


def _line(row: Row, width: int) -> str:
    shape = " x ".join(map(str, row.tensor.shape)) or "scalar"
    note = row.note if row.tensor.requires_grad else "frozen: not decayed"
    cells = [row.name.ljust(width), shape.rjust(16), f"{row.tensor.numel():>12,}", f"{row.strength:>10g}"]
    return ("  " + "  ".join(cells if width else cells[1:]) + f"  {note}").rstrip()


def describe_weight_decay(optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> str:
    """Return what an optimizer's own ``weight_decay`` decays, in the form of ``Regularizer.describe``.

    In every optimizer of torch it is multiplied by the learning rate.

    Args:
        optimizer: any; one without ``weight_decay`` decays nothing.
        model: for the names, where the optimizer was not given named parameters.
    """
    names = names_of(model)
    rows = []
    for group in optimizer.param_groups:
        given = group.get("param_names", [""] * len(group["params"]))
        strength = float(group.get("weight_decay", 0))
        rows += [Row(p, strength, n or names.get(id(p), "")) for p, n in zip(group["params"], given, strict=True)]
    return describe(type(optimizer).__name__, rows, ["multiplied by the learning rate"], "weight_decay")


def names_of(model: nn.Module | None) -> dict[int, str]:
    """Return the name of each parameter by its id; of a shared one the first."""
    return {} if model is None else {id(p): name for name, p in model.named_parameters()}
