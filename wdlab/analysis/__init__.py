"""Tables, pictures and verdicts from run directories. Only records are read; nothing that trains is imported."""

from wdlab.analysis.load import load

__all__ = ["load"]
