"""Where shards are: local folders, stores, the cache between."""
