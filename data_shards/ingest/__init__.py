"""Converts slides, captions, QuPath exports and tables into tiles and labels."""
