"""How a run is carried out: device, processes, log points, averaging, stopping, progress."""
