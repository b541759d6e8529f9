"""The order of tiles."""
