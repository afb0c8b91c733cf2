"""The files that a run writes: its directory, log lines, checkpoints and provenance; and its name.

This file imports nothing, so that the modules of this package that need no torch can be imported without torch.
"""
