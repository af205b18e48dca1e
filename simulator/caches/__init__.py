"""What is cached: the real store of each pool, and the real index of placements."""
