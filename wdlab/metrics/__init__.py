"""What is measured of a run, one file per family; ``Metrics`` gathers what a log line holds. Called by the loop."""

from wdlab.metrics.measure import Metrics
from wdlab.metrics.objective import cross_entropy

__all__ = ["Metrics", "cross_entropy"]
