"""Weight decay methods. Each works on any torch optimizer: ``L2(weights(model), strength=1e-4).attach(optimizer)``."""

from wdlab.regularizers.base import Regularizer
from wdlab.regularizers.l2 import L2
from wdlab.regularizers.pathprox import PathProx

__all__ = ["L2", "PathProx", "Regularizer"]
