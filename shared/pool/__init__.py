"""The client of cache pools, of one node or of several."""
