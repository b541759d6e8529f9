"""Sources of others into tiles and labels: slides, captions, tables."""
