"""What the two engines share around the model: the torch thread, pages from the pool, pages to the pool."""
