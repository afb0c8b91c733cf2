"""Studies that figures need in addition to runs: probes of checkpoints, and one weight without a network."""
