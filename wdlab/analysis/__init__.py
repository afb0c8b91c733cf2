"""From run directories to tables, pictures and verdicts. Reads records only; imports nothing that trains."""

from wdlab.analysis.load import load

__all__ = ["load"]
