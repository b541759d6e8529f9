"""Drawn tiles with known attributes."""
