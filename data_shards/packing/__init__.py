"""Packs tiles and labels into shards."""
