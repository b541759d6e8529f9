"""The format on disk: tiles, index, checksums."""
