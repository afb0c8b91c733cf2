"""The parts of a run around the training loop: device, processes, log points, averaging, stopping, progress."""
