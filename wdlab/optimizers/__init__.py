"""Drop-in torch optimizers: ``AdamS`` and ``SGDS`` (P5), ``PAdam`` (P2).

The same methods attach to any other optimizer, see ``wdlab.regularizers``.
"""

from wdlab.optimizers.adams import AdamS
from wdlab.optimizers.padam import PAdam
from wdlab.optimizers.sgds import SGDS

__all__ = ["SGDS", "AdamS", "PAdam"]
