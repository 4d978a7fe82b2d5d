"""One training: the loop, batches, scoring, metrics, checkpoints, processes."""
