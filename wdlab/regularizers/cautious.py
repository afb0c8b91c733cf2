"""Cautious weight decay: only those weights are decayed that the optimizer's update does not move away from zero.

Chen et al. 2025, arXiv 2510.12402. The base class of the methods that decay weights next to an optimizer's step.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wdlab.regularizers.base import Params, Regularizer, Schedules
from wdlab.regularizers.checks import check_flag
from wdlab.tensors import local_shards


class CanBeCautious(Regularizer):
    """The base class of the methods that decay weights next to the optimizer's step.

    They decay outside the loss gradient, before or after the optimizer's step. With ``cautious=True`` a weight is
    decayed only in the steps in which ``(w0 - u) w0 >= 0``, where ``w0`` is the weight before the optimizer's step and
    ``u`` the weight after it, without the decay of this method. The optimizer's own ``weight_decay`` counts as part of
    the step. So does a change by another method that acts between this method's ``before_step`` and ``after_step``,
    which depends on the order of attachment. A change that is lost in rounding counts as ``u = w0``.

    ``before_step`` copies the weights of a cautious method, which takes one copy of the weights, and temporary memory.
    A subclass decays in ``after_step``, and passes its new weights through ``where_allowed``.

    Args:
        params, strength, over_time: as in :class:`wdlab.regularizers.Regularizer`.
        cautious: True for cautious decay.

    Raises:
        ValueError: as :class:`wdlab.regularizers.Regularizer`, and if ``cautious`` is not a bool.
    """

    def __init__(self, params: Params, strength: float, over_time: Schedules, cautious: bool) -> None:
        self.cautious = check_flag("cautious", cautious)
        self.minimizes_penalty = type(self).minimizes_penalty and not cautious
        self._before: dict[int, Tensor] = {}  # copies from before_step to after_step, by the id of the tensor
        super().__init__(params, strength, over_time)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_before": {}}

    def before_step(self) -> None:
        if self.cautious:
            params = [p for part in self.active_groups() for p in part.params]
            copies = [w.clone() for w in local_shards(params)]
            self._before = {id(p): w for p, w in zip(params, copies, strict=True)}

    def weights_before(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return the weights before the step of a cautious method, of DTensors the local shards."""
        return [self._before[id(p)] for p in params]

    def where_allowed(self, params: Sequence[Tensor], new: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the decayed weights where decay is allowed, and the weights without decay elsewhere.

        To be called once in a step, since it frees the copies.

        Args:
            params: parameters after the optimizer's step.
            new: the decayed weights for each of ``params``, of DTensors the local shards. They are returned unmodified
                if the method is not cautious.
        """
        if not self.cautious:
            return new
        triples = zip([self._before.pop(id(p)) for p in params], local_shards(params), new, strict=True)
        return [torch.where(moves_inwards(before, after), decayed, after) for before, after, decayed in triples]


def moves_inwards(before: Tensor, after: Tensor) -> Tensor:
    """Return the mask ``(before - after) * before >= 0``: where a step does not move a weight away from zero.

    Args:
        before: the weights before the step.
        after: the weights after the step, in the same shape.
    """
    return (before - after).sign_().mul_(before.sign()) >= 0  # of signs, since a product of tiny numbers would be 0
