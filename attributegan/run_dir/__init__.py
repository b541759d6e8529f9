"""What a run folder has beside its checkpoints: the lock, the status, logs."""
