"""The files that a run leaves: identity, directory, records, checkpoints, provenance.

This file imports nothing, so that the modules that need no torch can be imported without it.
"""
