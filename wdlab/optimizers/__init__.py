"""Drop-in torch optimizers: ``AdamS`` and ``SGDS`` (P5), ``PAdam`` (P2).

``wdlab.regularizers`` has the same methods in a form that attaches to an existing optimizer.
"""

from wdlab.optimizers.adams import AdamS
from wdlab.optimizers.padam import PAdam
from wdlab.optimizers.sgds import SGDS

__all__ = ["SGDS", "AdamS", "PAdam"]
