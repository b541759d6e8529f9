"""Subcommands of attributegan-shard."""
