"""Checkpoints: folders that are written atomically and verified by checksums."""
