"""Access to shards: local folders, remote stores, and the cache between."""
