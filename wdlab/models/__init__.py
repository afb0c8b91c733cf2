"""Networks, built from ``configs/model`` with ``input_shape`` and ``classes`` taken from the data set."""

from wdlab.models.mlp import MLP, FactorizedMLP

__all__ = ["MLP", "FactorizedMLP"]
