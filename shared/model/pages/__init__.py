"""Paged KV: which pages there are, who holds them, which can be shared."""
