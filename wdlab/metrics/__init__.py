"""What is measured of a run, one file per family; ``Metrics`` gathers what a log line holds. Called by the loop."""

from wdlab.metrics.measure import SHARPNESS_EXAMPLES, Metrics
from wdlab.metrics.objective import SPLITS, Evaluated, cross_entropy

__all__ = ["SHARPNESS_EXAMPLES", "SPLITS", "Evaluated", "Metrics", "cross_entropy"]
