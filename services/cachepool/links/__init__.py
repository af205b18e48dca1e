"""Links between datacenters: who sends next, and what the link carries."""
