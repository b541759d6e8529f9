"""Benchmarks of attributegan-bench."""
