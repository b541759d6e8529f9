"""The contents of a run folder other than checkpoints: lock, status, resolved configuration, logs."""
