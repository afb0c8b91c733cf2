"""The files that a run leaves: identity, directory, records, checkpoints, provenance.

Nothing is imported here, since some of these modules need no torch.
"""
