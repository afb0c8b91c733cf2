"""The plots of the figures, one module per paper."""
