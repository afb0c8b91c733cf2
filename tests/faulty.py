"""Networks that go wrong, for ``model._target_=tests.faulty.<name>``."""

import os
import sys

from torch import Tensor

from wdlab.models import MLP

GOOD_STEPS = 3


class _Faulty(MLP):
    """Goes wrong in the training step after ``GOOD_STEPS`` good ones; not while it is looked at."""

    done = 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and isinstance(inputs, Tensor) and not inputs.is_meta:
            if self.done == GOOD_STEPS:
                self.go_wrong()
            self.done += 1
        return super().forward(inputs)

    def go_wrong(self) -> None:
        raise NotImplementedError


class Raises(_Faulty):
    def go_wrong(self) -> None:
        raise RuntimeError("out of luck\nin two lines")


class Exits(_Faulty):
    def go_wrong(self) -> None:
        sys.exit(3)


class Dies(_Faulty):
    def go_wrong(self) -> None:
        os._exit(9)


class ExitsWhenBuilt(MLP):
    def __init__(self, *_: object, **__: object) -> None:
        sys.exit("no such thing")


class RaisesWhenTried(MLP):
    def forward(self, inputs: Tensor) -> Tensor:
        raise RuntimeError("not even once")
