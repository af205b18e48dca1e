"""Replay of a request trace through the pool's own store: how much of it hits, by capacity and policy."""
