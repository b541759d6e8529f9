"""Tiles and labels into shards."""
