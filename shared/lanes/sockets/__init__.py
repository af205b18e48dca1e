"""Payloads between hosts: a few TCP connections for each attachment, served by threads beside the event loop."""
