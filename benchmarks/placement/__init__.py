"""The parts of `benchmarks.index`: a gateway's feed as the bus would fill it, and a pool with a large snapshot."""
