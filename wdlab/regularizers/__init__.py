"""Weight decay methods for torch optimizers, for example ``L2(weights(model), strength=1e-4).attach(optimizer)``.

A method works with every optimizer, unless its docstring names the optimizers that it needs.
"""

from wdlab.regularizers.base import Regularizer
from wdlab.regularizers.coherent import CoherenceGate, Coherent
from wdlab.regularizers.constrained import ConstrainedRegularization
from wdlab.regularizers.decoupled import DecoupledDecay, ScheduledDecay
from wdlab.regularizers.gradient_scale import GradientScale
from wdlab.regularizers.huber import HuberDecay
from wdlab.regularizers.in_loss import L1, L2, Lp
from wdlab.regularizers.magnitude_pruning import MagnitudePruning
from wdlab.regularizers.over_time import Delayed, Early, Late, OverTime, ScheduleFactor, WarmUp
from wdlab.regularizers.pathprox import PathProx
from wdlab.regularizers.peak_rate import Corrected, Independent
from wdlab.regularizers.pnorm import PNormDecay, PNormProx

__all__ = [
    "L1",
    "L2",
    "CoherenceGate",
    "Coherent",
    "ConstrainedRegularization",
    "Corrected",
    "DecoupledDecay",
    "Delayed",
    "Early",
    "GradientScale",
    "HuberDecay",
    "Independent",
    "Late",
    "Lp",
    "MagnitudePruning",
    "OverTime",
    "PNormDecay",
    "PNormProx",
    "PathProx",
    "Regularizer",
    "ScheduleFactor",
    "ScheduledDecay",
    "WarmUp",
]
