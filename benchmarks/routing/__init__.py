"""Routing policies compared in the simulator: goodput within SLOs, time to the first token, use of links."""
