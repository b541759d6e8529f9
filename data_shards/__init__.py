"""Shard sets: tiles and their levels in WebDataset tars with an index, and the order in which training reads them."""
