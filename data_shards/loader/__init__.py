"""Shards into batches."""
