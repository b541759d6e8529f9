"""What a set of shards is: tiles and their levels in WebDataset tars with an index, and the order in which training meets them."""
