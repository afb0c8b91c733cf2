"""Tables, pictures and verdicts from run directories. These modules read records only and import no training code."""

from wdlab.analysis.load import load

__all__ = ["load"]
