"""What is measured of a run, one file per family; ``Metrics`` gathers what a log line holds. Called by the loop."""

from wdlab.metrics.measure import Metrics

__all__ = ["Metrics"]
