"""Metrics of a run, one file per family. ``Metrics`` collects the values of a log line for the training loop."""

from wdlab.metrics.gradients import MethodOfRuns
from wdlab.metrics.measure import SHARPNESS_EXAMPLES, Metrics, MetricsOfRuns
from wdlab.metrics.objective import SPLITS, ResultsBySplit, cross_entropy

__all__ = [
    "SHARPNESS_EXAMPLES",
    "SPLITS",
    "MethodOfRuns",
    "Metrics",
    "MetricsOfRuns",
    "ResultsBySplit",
    "cross_entropy",
]
