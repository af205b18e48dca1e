"""Gateways: the real registry and router, and the bus that they hear."""
