"""Discrete events around the real router, policies, registry, placement index and pool stores: no sockets, no GPU."""
