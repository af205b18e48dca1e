"""Clients of the engines: what a gateway sends to decode and prefill workers, and what they answer."""
