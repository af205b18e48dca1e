"""Engines side by side: contestants that answer commands on a pipe, and pairs that share a cache (`__main__`)."""
