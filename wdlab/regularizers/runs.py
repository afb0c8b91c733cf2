"""The part of the methods that is for stacks: one method acts on several runs at once (see ``wdlab.stacked``).

In place of a parameter the method acts on a tensor of all runs, (runs, out, in) for a weight and (runs, 1, out) for a
bias. What it computes from gradients, such as the statistic of a gate, is a number per run.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from wdlab.regularizers.over_time import OverTime
from wdlab.regularizers.views import ParametersView

# A sum of squares in float32 above this is exact to 1e-6: each of up to 10^7 squares is off by less than 1e-45, the
# smallest number of the type.
SMALLEST_SUM = 1e-30


class ActsOnRuns:
    """The base class of ``Regularizer`` with what a stack of runs needs."""

    # True if hooks and ``penalty_gradient`` can act on a stack of runs; each class declares it in its own body
    stackable: ClassVar[bool]

    over_time: tuple[OverTime, ...]
    params: list[Tensor]
    _bound: ParametersView

    @property
    def view(self) -> ParametersView:
        """The view that this method is bound to. An AssertionError if there is none."""
        return self._bound

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that the method acts on: ``params``, or in their place the tensors of a stack."""
        return [self.view.tensor(p) for p in self.params]

    def obstacle_to_stacking(self, optimizer: torch.optim.Optimizer) -> str | None:
        """Return why this method cannot act on a stack of runs under an optimizer of this kind; None if it can.

        In a stack, every tensor has a leading dimension of runs; strength and learning rate have a number for each run.
        """
        kind = type(self)
        if not vars(kind).get("stackable", False):
            return f"{kind.__name__} acts on single runs"
        return next(filter(None, (schedule.obstacle_to_stacking(optimizer) for schedule in self.over_time)), None)

    def gather_runs(self, runs: Sequence[Self]) -> None:
        """Take over the states of the methods of all runs of the view that this method is bound to.

        Args:
            runs: the method of each run.
        """
        for k, schedule in enumerate(self.over_time):
            schedule.gather_runs(self, [run.over_time[k] for run in runs])

    def scatter_runs(self, runs: Sequence[Self]) -> None:
        """Give each run's part of this method's state to the method of the run; the counterpart of ``gather_runs``."""
        for k, schedule in enumerate(self.over_time):
            schedule.scatter_runs(self, [run.over_time[k] for run in runs])


def gathered(values: Sequence[Any], like: Tensor) -> Tensor:
    """Return a number or tensor of each run as one tensor of the stack.

    Args:
        values: for each run a number, or a tensor.
        like: a tensor with the shape, dtype and device of the result.
    """
    parts = [torch.as_tensor(value, dtype=like.dtype, device=like.device) for value in values]
    return torch.stack(parts).view(like.shape)


def products_of_runs(left: Sequence[Tensor], right: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``l . l``, ``l . r`` and ``r . r`` of each run, with each list taken as one vector per run.

    Squares may be tiny, so the products are taken in float64. On the CPU they are taken in the tensors' own type where
    the sums show that its range suffices, which takes a fifth of the time. A run's numbers do not depend on how many
    runs there are, to the last bit: torch splits a sum over threads only if it is the only sum of its call, and adds
    the numbers of a column in an order that depends on the number of columns. So the elements of a run are summed row
    by row, and the tensors one after another.

    Args:
        left: tensors (runs, rows, columns).
        right: tensors of the same shapes.

    Returns:
        Three tensors (runs, 1, 1), float64.
    """
    pairs = list(zip(left, right, strict=True))
    if not left[0].is_cpu:
        return tuple(sum(_exact_products(a, b) for a, b in pairs)[:, :, None, None])
    products = sum((a * b).sum(2).sum(1, dtype=torch.float64) for a, b in pairs)
    sums = torch.stack([sum(square_sums_of_runs(left)), products, sum(square_sums_of_runs(right))])
    in_range = (sums[::2] > SMALLEST_SUM).all(0) & sums.isfinite().all(0)
    for k in in_range.logical_not().nonzero().flatten().tolist():
        sums[:, k] = sum(_exact_products(a[k : k + 1], b[k : k + 1]) for a, b in pairs)[:, 0]
    return tuple(sums[:, :, None, None])


def _exact_products(left: Tensor, right: Tensor) -> Tensor:
    """Return the three products of ``products_of_runs`` for one tensor each, taken in float64, (3, runs)."""
    a, b = left.double(), right.double()
    return torch.stack([(x * y).sum(2).sum(1) for x, y in ((a, a), (a, b), (b, b))])


def square_sums_of_runs(tensors: Sequence[Tensor]) -> Tensor:
    """Return ``sum(t^2)`` of each run for each tensor ``t``, shape (tensors, runs), float64.

    As for single runs, the squares are summed in the tensor's own type, and on the CPU in float64 where the sum exceeds
    the range of the type. A run's numbers do not depend on how many runs there are, as in ``products_of_runs``.

    Args:
        tensors: tensors (runs, rows, columns).
    """
    sums = torch.stack([_square_sums(torch.linalg.vector_norm(t, dim=2)) for t in tensors])
    if sums.is_cpu and not (finite := sums.isfinite()).all():
        exact = torch.stack([_square_sums(torch.linalg.vector_norm(t, dim=2, dtype=torch.float64)) for t in tensors])
        sums = torch.where(finite, sums, exact)
    return sums


def _square_sums(norms: Tensor) -> Tensor:
    """Return the sum over the last dimension of the squares of ``norms``, float64."""
    return norms.double().square().sum(1)
