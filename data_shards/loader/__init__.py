"""Reads shards and yields batches."""
